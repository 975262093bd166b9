import { useState } from "preact/hooks";

import { session } from "../account";
import { summaries } from "../chat";
import { sentenceOf } from "../errors";
import { leave } from "../leave";
import { isSignOutOpen } from "../view";
import { Dialog } from "./Dialog";

export function SignOutDialog() {
  const numChats = summaries.value.length;
  const [isForgetting, setIsForgetting] = useState(false);
  const [isBusy, setIsBusy] = useState(false);
  const [problem, setProblem] = useState<string | null>(null);
  const go = async (close: () => void): Promise<void> => {
    if (isBusy) return;
    setIsBusy(true);
    try {
      await leave(isForgetting);
      close();
    } catch (error) {
      setProblem(`You are still signed in. ${sentenceOf(error)}`);
      setIsBusy(false);
    }
  };
  return (
    <Dialog title="Sign out?" onClose={() => (isSignOutOpen.value = false)} testId="sign-out-dialog">
      {(close) => (
        <>
          <p>{consequence()}</p>
          {numChats > 0 && (
            <label class="check">
              <input type="checkbox" data-testid="forget-chats" checked={isForgetting} onChange={(event) => setIsForgetting(event.currentTarget.checked)} />
              <span>Also delete my chats from this browser ({numChats})<small>Otherwise they stay here, and whoever uses this browser can read them.</small></span>
            </label>
          )}
          <p class="field-error" role="alert">{problem}</p>
          <div class="dialog-actions">
            <button type="button" class="button" onClick={close}>Cancel</button>
            <button type="button" class={`button ${isForgetting ? "is-danger" : "is-primary"}`} data-testid="sign-out-confirm" aria-disabled={isBusy} onClick={() => void go(close)}>
              {isForgetting ? "Sign out and delete" : "Sign out"}
            </button>
          </div>
        </>
      )}
    </Dialog>
  );
}

function consequence(): string {
  if (session.value?.isOpen === true) return "This pool is open: you can go on chatting signed out.";
  return "To chat here again you need your invitation link, or a new one if it has been used up.";
}
