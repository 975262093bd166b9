// What an operator can have done. Each call ends when the coordinator has answered, and throws a PoolError otherwise.

import { PoolError } from "../errors";
import { read, write } from "../http";
import type { InvitationTerms, KeyTerms, ModelSource } from "./forms";
import { decodeMadeInvitation, decodeMadeKey, decodeOverview, type MadeInvitation, type MadeKey, type Overview } from "./overview";
import { decodePlan, type Plan } from "./plan";

const BASE = "api/operator";

export async function fetchOverview(): Promise<Overview> {
  return decodeOverview(await read(`${BASE}/overview`));
}

export async function fetchPlan(): Promise<Plan> {
  return decodePlan(await read(`${BASE}/plan`));
}

export async function drainNode(id: string, on: boolean): Promise<void> {
  await write("POST", `${BASE}/nodes/${segment(id)}/drain`, { on });
}

export async function removeNode(id: string): Promise<void> {
  await write("POST", `${BASE}/nodes/${segment(id)}/remove`);
}

export async function unblockNode(id: string): Promise<void> {
  await write("POST", `${BASE}/nodes/${segment(id)}/unblock`);
}

export async function addModel({ spec, name }: ModelSource): Promise<void> {
  await write("POST", `${BASE}/models`, name === "" ? { spec } : { spec, name });
}

export async function loadModel(id: string): Promise<void> {
  await write("POST", `${BASE}/models/${segment(id)}/load`);
}

export async function unloadModel(id: string): Promise<void> {
  await write("POST", `${BASE}/models/${segment(id)}/unload`);
}

export async function removeModel(id: string): Promise<void> {
  await write("DELETE", `${BASE}/models/${segment(id)}`);
}

export async function makeInvitation(terms: InvitationTerms): Promise<MadeInvitation> {
  return decodeMadeInvitation(await write("POST", `${BASE}/invitations`, terms));
}

export async function revokeInvitation(id: string): Promise<void> {
  await write("DELETE", `${BASE}/invitations/${segment(id)}`);
}

export async function makeKey(terms: KeyTerms): Promise<MadeKey> {
  return decodeMadeKey(await write("POST", `${BASE}/keys`, terms));
}

export async function revokeKey(id: string): Promise<void> {
  await write("DELETE", `${BASE}/keys/${segment(id)}`);
}

/** Dots alone would climb out of the address, even when they are escaped (URL standard, "double-dot path segment"). */
export function segment(name: string): string {
  if (name === "." || name === "..") throw new PoolError("This name cannot be part of an address.", "bad_name");
  return encodeURIComponent(name);
}
