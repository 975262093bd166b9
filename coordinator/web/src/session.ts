// Who is signed in. The cookie itself is out of reach of scripts; the coordinator says what it stands for.

import { nameOf } from "./decode";
import { isRecord, PoolError } from "./errors";
import { read, write } from "./http";
import { isToken } from "./joinLink";

export type Role = "chat" | "operator";

export interface Session {
  poolName: string;
  isOpen: boolean;
  role: Role | null;
  /** The invitation's name, or what the operator's link was made for. */
  label: string;
  canChat: boolean;
}

const ADDRESS = "api/session";

export async function fetchSession(): Promise<Session> {
  return decodeSession(await read(ADDRESS));
}

/** Exchanges an invitation or an operator's link for a session. */
export async function signIn(token: string): Promise<Session> {
  if (!isToken(token)) throw new PoolError("The link is damaged. Copy the whole link again.", "bad_token");
  return decodeSession(await write("POST", ADDRESS, { token }));
}

export async function signOut(): Promise<void> {
  await write("DELETE", ADDRESS);
}

export function decodeSession(body: unknown): Session {
  if (!isRecord(body)) throw new PoolError("The coordinator sent something this page does not understand.", "bad_session");
  const role = body["role"];
  return {
    poolName: nameOf(body["pool_name"]),
    isOpen: body["is_open"] === true,
    role: role === "chat" || role === "operator" ? role : null,
    label: nameOf(body["label"]),
    canChat: body["can_chat"] === true,
  };
}

/** The token of `#invite=...` or `#token=...`, taken out of the address bar at once: it must not stay in the history. */
export function takeToken(name: "invite" | "token"): string | null {
  const start = `#${name}=`;
  if (!location.hash.startsWith(start)) return null;
  const token = location.hash.slice(start.length);
  history.replaceState(null, "", location.pathname + location.search);
  return token;
}

/** What a person reads after a link let them in. */
export function welcomeSentence({ poolName, role, label }: Session): string {
  const pool = poolName === "" ? "the pool" : `“${poolName}”`;
  if (role === "operator") return `You are signed in to ${pool} as its operator.`;
  return label === "" ? `Welcome to ${pool}. An invitation let you in.` : `Welcome to ${pool}. Your invitation: “${label}”.`;
}
