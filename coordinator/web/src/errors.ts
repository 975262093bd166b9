// What can go wrong between the page and the pool, each as one sentence that a person can act on.

export class PoolError extends Error {
  override name = "PoolError";
  constructor(
    message: string,
    readonly code: string,
    readonly requestId: string | null = null,
    /** The HTTP status it came with, if it came as an answer. */
    readonly status: number | null = null,
  ) {
    super(message);
  }
}

export class Unreachable extends PoolError {
  constructor() {
    super("The coordinator cannot be reached. Check your connection, then try again.", "unreachable");
  }
}

export class StreamCut extends PoolError {
  constructor() {
    super("The connection was cut before the answer was complete.", "stream_cut");
  }
}

export class Silent extends PoolError {
  constructor(seconds: number) {
    super(`The pool has sent nothing for ${seconds} seconds.`, "silent");
  }
}

const MAX_MESSAGE_CHARACTERS = 400;

const BY_STATUS: Record<number, string> = {
  401: "You need to sign in before this pool answers.",
  403: "This pool does not let you do that.",
  404: "This pool does not serve that model.",
  413: "The conversation is too long for this pool.",
  429: "The pool is busy. Wait a moment, then try again.",
  503: "The pool cannot answer right now.",
};

/** The body of an HTTP error or of an error in mid-stream, whatever it holds, as a PoolError. */
export function errorFromBody(body: unknown, status: number): PoolError {
  const outer = isRecord(body) ? body : {};
  const inner = isRecord(outer["error"]) ? outer["error"] : {};
  const message = typeof inner["message"] === "string" ? inner["message"].trim() : "";
  const code = typeof inner["code"] === "string" ? inner["code"] : String(status);
  const requestId = typeof outer["request_id"] === "string" ? outer["request_id"] : null;
  const fallback = BY_STATUS[status] ?? `The coordinator answered with an error (${status}).`;
  return new PoolError(message.slice(0, MAX_MESSAGE_CHARACTERS) || fallback, code, requestId, status);
}

/** Whether the coordinator asks who is there: the session has ended, or never began. */
export function isSignInNeeded(error: unknown): boolean {
  return error instanceof PoolError && error.status === 401;
}

/** One sentence for anything thrown while an answer was fetched. */
export function sentenceOf(error: unknown): string {
  return error instanceof PoolError ? error.message : "Something went wrong in this page. Try again.";
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
