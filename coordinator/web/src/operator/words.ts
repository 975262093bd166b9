// What the operator reads: states, times and consequences, in words.

import { plural } from "../format";
import type { Invitation, Key, Late, Model, Node, Troubles } from "./overview";

/** A state's shape; its word always stands beside it. */
export type Shape = "full" | "ring" | "half" | "pause" | "cross" | "empty" | "warn";

export interface Mark {
  shape: Shape;
  word: string;
}

/** A Map: a node may call its state anything, `constructor` too. */
const ACTIVITIES = new Map<string, Mark>([
  ["serving", { shape: "full", word: "Serving" }],
  ["idle", { shape: "ring", word: "Idle" }],
  ["measuring", { shape: "half", word: "Measuring" }],
  ["downloading", { shape: "half", word: "Downloading" }],
  ["loading", { shape: "half", word: "Loading" }],
  ["failed", { shape: "warn", word: "Failed" }],
]);

const PARTS = new Map<string, Mark>([
  ["serving", { shape: "full", word: "Serving" }],
  ["loading", { shape: "half", word: "Loading" }],
  ["standby", { shape: "ring", word: "Standing by" }],
  ["measuring", { shape: "half", word: "Measuring" }],
  ["draining", { shape: "pause", word: "Draining" }],
  ["failed", { shape: "warn", word: "Failed" }],
]);

/** What a device does for the plan. */
export function partMark(part: string): Mark {
  return PARTS.get(part) ?? { shape: "ring", word: part };
}

export function nodeMark(node: Node): Mark {
  if (node.isBlocked) return { shape: "cross", word: "Removed" };
  if (!node.isConnected) return { shape: "empty", word: "Offline" };
  if (node.isDraining) return { shape: "pause", word: "Draining" };
  return ACTIVITIES.get(node.state) ?? { shape: "ring", word: node.state === "" ? "Idle" : node.state };
}

/** What was found of a node when answers were late; empty if nothing was. */
export function troublesOf(troubles: Troubles): string {
  const parts = [
    troubles.hangs > 0 && `its worker hung ${times(troubles.hangs)}`,
    troubles.silent > 0 && `it did not answer ${times(troubles.silent)}`,
    troubles.cut > 0 && `a link of it lost rows ${times(troubles.cut)}`,
  ];
  return parts.filter((part) => part !== false).join(", ");
}

/** What late answers were about, in one sentence; empty while none was late. */
export function lateSentence(late: Late): string {
  const found: [number, string][] = [
    [late.wait, "under way all the time"], [late.hangs, "held up by a worker that hung"], [late.silent, "at a node that did not answer"],
    [late.cut, "lost between two nodes"], [late.unknown, "late for no known reason"],
  ];
  const numLooks = found.reduce((sum, [count]) => sum + count, 0);
  const looked = found.filter(([count]) => count > 0).map(([count, words]) => `${count.toLocaleString("en")} ${words}`).join(", ");
  const moved = late.slow > 0 ? ` ${plural(late.slow, "answer")} moved because a chain had become slow.` : "";
  return numLooks + late.slow === 0 ? "" : `Since the start, late answers were looked into ${times(numLooks)}${looked && `: ${looked}`}.${moved}`;
}

function times(count: number): string {
  return plural(count, "time");
}

const MODEL_MARKS: Record<Model["state"], Mark> = {
  ready: { shape: "full", word: "Ready" },
  loading: { shape: "half", word: "Loading" },
  incomplete: { shape: "warn", word: "Incomplete" },
  unloaded: { shape: "empty", word: "Not loaded" },
};

export function modelMark(model: Model): Mark {
  return MODEL_MARKS[model.state];
}

export function invitationMark(invitation: Invitation, nowS: number): Mark {
  if (invitation.isRevoked) return { shape: "cross", word: "Revoked" };
  if (isPast(invitation.expiresS, nowS)) return { shape: "empty", word: "Expired" };
  if (invitation.maxUses !== null && invitation.numUses >= invitation.maxUses) return { shape: "empty", word: "Used up" };
  return { shape: "full", word: "Active" };
}

export function keyMark(key: Key, nowS: number): Mark {
  if (key.isRevoked) return { shape: "cross", word: "Revoked" };
  return isPast(key.expiresS, nowS) ? { shape: "empty", word: "Expired" } : { shape: "full", word: "Active" };
}

function isPast(timeS: number | null, nowS: number): boolean {
  return timeS !== null && timeS <= nowS;
}

export function nodeTitle(node: Node): string {
  return node.name || `Node ${node.id.slice(0, 8)}`;
}

export function allowsOf({ allowsChat, allowsNodes }: Invitation): string {
  if (allowsChat && allowsNodes) return "Chat and nodes";
  return allowsChat ? "Chat" : allowsNodes ? "Nodes" : "Nothing";
}

export function usesOf({ numUses, maxUses }: Invitation): string {
  return maxUses === null ? `${numUses}, no limit` : `${numUses} of ${maxUses}`;
}

const MINUTE_S = 60;
const HOUR_S = 3600;
const DAY_S = 86_400;

/** The clocks of two machines may differ: what seems to be in the future is now. */
export function agoOf(timeS: number | null, nowS: number): string {
  if (timeS === null) return "never";
  const passed = nowS - timeS;
  if (passed < 10) return "now";
  if (passed < MINUTE_S) return `${Math.floor(passed)} s ago`;
  if (passed < HOUR_S) return `${Math.floor(passed / MINUTE_S)} min ago`;
  if (passed < 2 * DAY_S) return `${Math.floor(passed / HOUR_S)} h ago`;
  return `${Math.floor(passed / DAY_S)} days ago`;
}

export function untilOf(timeS: number | null, nowS: number): string {
  if (timeS === null) return "never";
  const left = timeS - nowS;
  if (left <= 0) return "expired";
  if (left < HOUR_S) return `in ${Math.ceil(left / MINUTE_S)} min`;
  if (left < 2 * DAY_S) return `in ${Math.round(left / HOUR_S)} h`;
  return `in ${Math.round(left / DAY_S)} days`;
}

/** For people who compare it by eye: groups of four. */
export function groupedPin(pin: string): string {
  return pin.match(/.{1,4}/g)?.join(" ") ?? "";
}

export function removalConsequence(node: Node): string {
  const parts = ["It is disconnected at once and cannot come back until you unblock it."];
  if (node.numSessions > 0) {
    parts.push(`It takes part in ${plural(node.numSessions, "answer")} now; other nodes take over where the pool has a complete chain without it.`);
  }
  if (node.isConnected && node.devices.some((device) => device.layers !== null)) {
    parts.push("Its layers are given to other nodes; until they have them, a model may not answer.");
  }
  return parts.join(" ");
}
