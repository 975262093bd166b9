// Signing out, with or without one's conversations.

import { endSession } from "./account";
import { removeAll, stopAll } from "./chat";

export async function leave(isForgetting: boolean): Promise<void> {
  await endSession();
  stopAll();
  if (isForgetting) await removeAll();
}
