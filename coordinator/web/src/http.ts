// How both pages talk to the coordinator: never from a cache, JSON in and out, each failure a PoolError.

import { errorFromBody, Unreachable } from "./errors";

const READ_LIMIT_MS = 8_000;
/** What changes something may take longer: the coordinator writes it down before it answers. */
const WRITE_LIMIT_MS = 30_000;

export async function read(path: string): Promise<unknown> {
  return bodyOf(await request(path, { signal: AbortSignal.timeout(READ_LIMIT_MS) }));
}

/** JSON always, even an empty object: the coordinator takes changes in no form that another site could send. */
export async function write(method: "POST" | "DELETE", path: string, body: object = {}): Promise<unknown> {
  const options: RequestInit = {
    method,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(WRITE_LIMIT_MS),
  };
  return bodyOf(await request(path, options));
}

export async function request(path: string, options: RequestInit): Promise<Response> {
  try {
    return await fetch(path, { ...options, cache: "no-store" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Unreachable();
  }
}

export async function jsonOf(response: Response): Promise<unknown> {
  try {
    return await response.json();
  } catch {
    return null; // a proxy's HTML error page, say; the status code still gives a sentence
  }
}

async function bodyOf(response: Response): Promise<unknown> {
  const body = await jsonOf(response);
  if (!response.ok) throw errorFromBody(body, response.status);
  return body;
}
