// A place in the queue, in words.

import type { QueuePlace } from "./api";
import { plural } from "./format";

export function queueSentence({ place, numWaiting, expectedWaitS }: QueuePlace): string {
  const where = place === 1 ? "You are next" : `You are number ${place} of ${numWaiting}`;
  return expectedWaitS === null ? where : `${where}; ${describeWait(expectedWaitS)}`;
}

/** As coarse as a forecast deserves. */
export function describeWait(seconds: number): string {
  if (seconds < 2) return "a moment";
  if (seconds < 10) return `about ${plural(Math.round(seconds), "second")}`;
  if (seconds < 57.5) return `about ${Math.round(seconds / 5) * 5} seconds`;
  if (seconds < 3570) return `about ${plural(Math.round(seconds / 60), "minute")}`;
  return "more than an hour";
}

/** Whether a screen reader should hear of it: every step near the front, only long strides far behind. */
export function isWorthSaying(said: QueuePlace | null, now: QueuePlace): boolean {
  if (said === null || now.place > said.place) return said?.place !== now.place;
  if (now.place === said.place) return false;
  return now.place <= 3 || said.place - now.place >= Math.max(2, Math.round(said.place / 4));
}
