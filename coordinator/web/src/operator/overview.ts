// What the operator page shows, as the coordinator says it; past this file all types hold.

import { nameOf, nullableNumberOf, numberOf, recordsOf, sentenceFrom, textOf, timeOf } from "../decode";
import { isRecord, PoolError } from "../errors";

export interface Device {
  name: string;
  state: string;
  model: string | null;
  layers: string | null;
  lane: number | null;
  reason: string;
  doneBytes: number;
  totalBytes: number;
}

export interface Node {
  id: string;
  name: string;
  state: string;
  devices: Device[];
  firstSeenS: number | null;
  lastSeenS: number | null;
  isConnected: boolean;
  isDraining: boolean;
  isBlocked: boolean;
  numTokens: number;
  numSessions: number;
  tokensPerSecond: number | null;
  troubles: Troubles;
}

/** What was found of a node when answers were late, since the coordinator's start. */
export interface Troubles {
  hangs: number;
  silent: number;
  cut: number;
}

/** What late answers turned out to be; `wait`: under way all the time, `slow`: moved away from what became slow. */
export interface Late extends Troubles {
  wait: number;
  unknown: number;
  slow: number;
}

export type ModelState = "ready" | "loading" | "incomplete" | "unloaded";

export interface Model {
  id: string;
  state: ModelState;
  message: string;
  numLayers: number;
  sizeBytes: number | null;
}

export interface Job {
  id: string;
  spec: string;
  step: string;
  doneBytes: number;
  totalBytes: number;
  state: "running" | "failed" | "done";
  message: string;
}

export interface Invitation {
  id: string;
  label: string;
  allowsChat: boolean;
  allowsNodes: boolean;
  maxUses: number | null;
  numUses: number;
  createdS: number | null;
  expiresS: number | null;
  isRevoked: boolean;
}

export interface Key {
  id: string;
  label: string;
  createdS: number | null;
  lastUsedS: number | null;
  expiresS: number | null;
  isRevoked: boolean;
}

export interface AuditEntry {
  atS: number | null;
  who: string;
  what: string;
}

export interface Overview {
  poolName: string;
  numWaiting: number;
  joinLink: string;
  browserLink: string;
  /** The certificate's SHA-256 in 64 digits; empty without a certificate of the pool's own. */
  pin: string;
  nodes: Node[];
  late: Late;
  models: Model[];
  jobs: Job[];
  invitations: Invitation[];
  keys: Key[];
  audit: AuditEntry[];
}

/** Links and specs are longer than names. */
const MAX_LINK_CHARACTERS = 600;
const MAX_SPEC_CHARACTERS = 1_000;

export function decodeOverview(body: unknown): Overview {
  if (!isRecord(body)) throw notUnderstood();
  const pool = isRecord(body["pool"]) ? body["pool"] : {};
  return {
    poolName: nameOf(pool["name"]),
    numWaiting: numberOf(pool["num_waiting"]),
    joinLink: textOf(body["join_link"], MAX_LINK_CHARACTERS),
    browserLink: textOf(body["browser_link"], MAX_LINK_CHARACTERS),
    pin: pinOf(body["pin"]),
    nodes: recordsOf(body["nodes"]).filter(hasId("node_id")).map(decodeNode),
    late: decodeLate(body["late"]),
    models: recordsOf(body["models"]).filter(hasId("id")).map(decodeModel),
    jobs: recordsOf(body["jobs"]).map(decodeJob),
    invitations: recordsOf(body["invitations"]).filter(hasId("invitation_id")).map(decodeInvitation),
    keys: recordsOf(body["keys"]).filter(hasId("key_id")).map(decodeKey),
    audit: recordsOf(body["audit"]).map(decodeAudit),
  };
}

/** A row that cannot be named cannot be acted on. */
function hasId(field: string): (row: Record<string, unknown>) => boolean {
  return (row) => nameOf(row[field]) !== "";
}

export function notUnderstood(): PoolError {
  return new PoolError("The coordinator sent something this page does not understand.", "bad_answer");
}

function pinOf(value: unknown): string {
  return typeof value === "string" && /^[0-9a-f]{64}$/.test(value) ? value : "";
}

function decodeNode(node: Record<string, unknown>): Node {
  return {
    id: nameOf(node["node_id"]),
    name: nameOf(node["name"]),
    state: nameOf(node["state"]),
    devices: recordsOf(node["devices"]).map(decodeDevice),
    firstSeenS: timeOf(node["first_seen_s"]),
    lastSeenS: timeOf(node["last_seen_s"]),
    isConnected: node["is_connected"] === true,
    isDraining: node["is_draining"] === true,
    isBlocked: node["is_blocked"] === true,
    numTokens: numberOf(node["num_tokens"]),
    numSessions: numberOf(node["num_sessions"]),
    tokensPerSecond: nullableNumberOf(node["tokens_per_s"]),
    troubles: decodeTroubles(node["troubles"]),
  };
}

function decodeTroubles(value: unknown): Troubles {
  const counts = isRecord(value) ? value : {};
  return { hangs: numberOf(counts["hangs"]), silent: numberOf(counts["silent"]), cut: numberOf(counts["cut"]) };
}

function decodeLate(value: unknown): Late {
  const counts = isRecord(value) ? value : {};
  const others = { wait: numberOf(counts["wait"]), unknown: numberOf(counts["unknown"]), slow: numberOf(counts["slow"]) };
  return { ...decodeTroubles(value), ...others };
}

function decodeDevice(device: Record<string, unknown>): Device {
  return {
    name: nameOf(device["name"]),
    state: nameOf(device["state"]),
    model: nameOf(device["model"]) || null,
    layers: nameOf(device["layers"]) || null,
    lane: numberOf(device["lane"]) || null,
    reason: sentenceFrom(device["reason"]),
    doneBytes: numberOf(device["done_bytes"]),
    totalBytes: numberOf(device["total_bytes"]),
  };
}

const MODEL_STATES: readonly string[] = ["ready", "loading", "incomplete"];

function decodeModel(model: Record<string, unknown>): Model {
  const state = nameOf(model["state"]);
  const known = MODEL_STATES.includes(state) ? (state as ModelState) : "incomplete";
  return {
    id: nameOf(model["id"]),
    state: model["is_loaded"] === false ? "unloaded" : known,
    message: sentenceFrom(model["message"]),
    numLayers: numberOf(model["num_layers"]),
    sizeBytes: nullableNumberOf(model["size_bytes"]) || null,
  };
}

function decodeJob(job: Record<string, unknown>): Job {
  const state = job["state"];
  return {
    id: nameOf(job["job_id"]),
    spec: textOf(job["spec"], MAX_SPEC_CHARACTERS),
    step: nameOf(job["step"]),
    doneBytes: numberOf(job["done_bytes"]),
    totalBytes: numberOf(job["total_bytes"]),
    state: state === "failed" || state === "done" ? state : "running",
    message: sentenceFrom(job["message"]),
  };
}

function decodeInvitation(invitation: Record<string, unknown>): Invitation {
  return {
    id: nameOf(invitation["invitation_id"]),
    label: nameOf(invitation["label"]),
    allowsChat: invitation["allows_chat"] === true,
    allowsNodes: invitation["allows_nodes"] === true,
    maxUses: nullableNumberOf(invitation["max_uses"]),
    numUses: numberOf(invitation["num_uses"]),
    createdS: timeOf(invitation["created_s"]),
    expiresS: timeOf(invitation["expires_s"]),
    isRevoked: invitation["is_revoked"] === true,
  };
}

function decodeKey(key: Record<string, unknown>): Key {
  return {
    id: nameOf(key["key_id"]),
    label: nameOf(key["label"]),
    createdS: timeOf(key["created_s"]),
    lastUsedS: timeOf(key["last_used_s"]),
    expiresS: timeOf(key["expires_s"]),
    isRevoked: key["is_revoked"] === true,
  };
}

function decodeAudit(entry: Record<string, unknown>): AuditEntry {
  return { atS: timeOf(entry["at_s"]), who: nameOf(entry["who"]), what: sentenceFrom(entry["what"]) };
}

export interface MadeInvitation {
  invitation: Invitation;
  joinLink: string;
  browserLink: string;
}

/** The answer to a new invitation: the only one that ever holds its links. */
export function decodeMadeInvitation(body: unknown): MadeInvitation {
  if (!isRecord(body) || !isRecord(body["invitation"])) throw notUnderstood();
  return {
    invitation: decodeInvitation(body["invitation"]),
    joinLink: textOf(body["join_link"], MAX_LINK_CHARACTERS),
    browserLink: textOf(body["browser_link"], MAX_LINK_CHARACTERS),
  };
}

export interface MadeKey {
  key: Key;
  secret: string;
}

export function decodeMadeKey(body: unknown): MadeKey {
  const secret = isRecord(body) ? nameOf(body["secret"]) : "";
  if (!isRecord(body) || !isRecord(body["key"]) || secret === "") throw notUnderstood();
  return { key: decodeKey(body["key"]), secret };
}
