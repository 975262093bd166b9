// Coming back to an answer whose connection broke: when to try again, and what to ask for.

import { PoolError, Silent, StreamCut, Unreachable } from "./errors";

/** The pool keeps a running answer for 30 s without a reader, and for 60 s after a restart of its own. */
const GIVE_UP_MS = 75_000;
const FIRST_PAUSE_MS = 500;
const MAX_PAUSE_MS = 8_000;
/** What a proxy says while the coordinator behind it is being started, and the coordinator while it is not ready. */
const FOR_NOW = [502, 503, 504];

export class Comeback {
  lastId = "";
  private numTries = 0;
  private brokenAt: number | null = null;

  constructor(private readonly signal: AbortSignal) {}

  readonly request = (): [string, RequestInit] => [
    `${this.path}/events`,
    { headers: { Accept: "text/event-stream", "Last-Event-ID": this.lastId } },
  ];

  /** An event came: the connection works. */
  got(id: string): void {
    if (id !== "") this.lastId = id;
    this.numTries = 0;
    this.brokenAt = null;
  }

  isWorthTrying(error: unknown): boolean {
    if (this.signal.aborted || this.lastId === "") return false;
    this.brokenAt ??= performance.now();
    if (performance.now() - this.brokenAt > GIVE_UP_MS) return false;
    return error instanceof StreamCut || error instanceof Silent || error instanceof Unreachable || isForNow(error);
  }

  /** The pool has no such answer any more. */
  isGone(error: unknown): boolean {
    return this.lastId !== "" && error instanceof PoolError && error.code === "answer_not_found";
  }

  /** Longer each time, never at the same moment as everybody else; over at once when the network is back. */
  async pause(): Promise<void> {
    const limit = Math.min(MAX_PAUSE_MS, FIRST_PAUSE_MS * 2 ** this.numTries);
    this.numTries += 1;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(done, limit * (0.5 + Math.random() / 2));
      const { signal } = this;
      function done(): void {
        clearTimeout(timer);
        removeEventListener("online", done);
        signal.removeEventListener("abort", done);
        resolve();
      }
      addEventListener("online", done);
      signal.addEventListener("abort", done);
    });
    this.signal.throwIfAborted();
  }

  /** Whoever asked wants no more: the pool need not wait for this page to come back. */
  end(): void {
    if (this.lastId === "") return;
    // Nothing depends on it: unheard, the pool ends the answer a little later by itself.
    void fetch(this.path, { method: "DELETE", keepalive: true, cache: "no-store" }).catch(() => {});
  }

  private get path(): string {
    return `v1/chat/completions/${this.lastId.split(":")[0] ?? ""}`;
  }
}

function isForNow(error: unknown): boolean {
  return error instanceof PoolError && error.status !== null && FOR_NOW.includes(error.status);
}
