// A conversation is a tree of messages: editing a question or asking again adds a branch and loses nothing.
// Everything here is a pure function from one conversation to the next.

import type { ChainNode } from "./api";
import { isRecord } from "./errors";

export type Finish = "streaming" | "stop" | "length" | "stopped" | "error" | "interrupted";

export interface AnswerFacts {
  model: string;
  nodes: ChainNode[];
  numReroutes: number;
  finish: Finish;
  error: string | null;
  numTokens: number;
  timeToFirstTokenMs: number | null;
  tokensPerSecond: number | null;
  reasoningMs: number | null;
}

export interface Message {
  id: string;
  parent: string | null;
  role: "user" | "assistant";
  text: string;
  createdAt: number;
  facts: AnswerFacts | null;
}

export interface Conversation {
  id: string;
  title: string;
  createdAt: number;
  updatedAt: number;
  messages: Message[];
  leaf: string | null;
}

export interface Summary {
  id: string;
  title: string;
  updatedAt: number;
}

export interface Versions {
  index: number;
  ids: string[];
}

const MAX_TITLE_CHARACTERS = 60;

export function newId(): string {
  // randomUUID exists on secure origins only, and a pool on a home network is served over plain HTTP.
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, "0")).join("");
}

export function newConversation(now: number): Conversation {
  return { id: newId(), title: "New chat", createdAt: now, updatedAt: now, messages: [], leaf: null };
}

export function newFacts(model: string): AnswerFacts {
  return {
    model, nodes: [], numReroutes: 0, finish: "streaming", error: null,
    numTokens: 0, timeToFirstTokenMs: null, tokensPerSecond: null, reasoningMs: null,
  };
}

/** The messages from the first to the chosen leaf. */
export function pathOf(conversation: Conversation, leaf = conversation.leaf): Message[] {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const path: Message[] = [];
  // Every step takes its message out of the map, so that even a stored cycle ends.
  for (let id = leaf; id !== null; ) {
    const message = byId.get(id);
    if (message === undefined) break;
    byId.delete(id);
    path.push(message);
    id = message.parent;
  }
  return path.reverse();
}

export function append(conversation: Conversation, message: Message): Conversation {
  const isFirst = conversation.messages.length === 0;
  return {
    ...conversation,
    title: isFirst && message.role === "user" ? titleFrom(message.text) : conversation.title,
    updatedAt: Math.max(conversation.updatedAt, message.createdAt),
    messages: [...conversation.messages, message],
    leaf: message.id,
  };
}

export function replaceMessage(conversation: Conversation, id: string, change: Partial<Message>): Conversation {
  const messages = conversation.messages.map((message) => (message.id === id ? { ...message, ...change } : message));
  return { ...conversation, messages };
}

/** The versions of a message: what else was asked, or answered, at the same place. */
export function versionsOf(conversation: Conversation, id: string): Versions {
  const message = conversation.messages.find((candidate) => candidate.id === id);
  const ids = conversation.messages
    .filter((candidate) => candidate.parent === message?.parent && candidate.role === message?.role)
    .map((candidate) => candidate.id);
  return { index: ids.indexOf(id), ids };
}

/** Shows another version, with the newest of what followed it. */
export function chooseVersion(conversation: Conversation, id: string): Conversation {
  const newestChild = new Map<string, string>();
  for (const message of conversation.messages) if (message.parent !== null) newestChild.set(message.parent, message.id);
  let leaf = id;
  for (let child = newestChild.get(leaf); child !== undefined; child = newestChild.get(leaf)) {
    newestChild.delete(leaf);
    leaf = child;
  }
  return { ...conversation, leaf };
}

export function titleFrom(text: string): string {
  const line = text.trim().split(/\s*\n/, 1)[0]?.replace(/\s+/g, " ") ?? "";
  if (line === "") return "New chat";
  return line.length <= MAX_TITLE_CHARACTERS ? line : `${line.slice(0, MAX_TITLE_CHARACTERS - 1).toWellFormed().trimEnd()}…`;
}

export function summaryOf({ id, title, updatedAt }: Conversation): Summary {
  return { id, title, updatedAt };
}

export function toMarkdown(conversation: Conversation): string {
  const parts = pathOf(conversation).map((message) => `## ${message.role === "user" ? "You" : "Pool"}\n\n${message.text.trim()}\n`);
  return `# ${conversation.title}\n\n${parts.join("\n")}`;
}

/** A conversation read back from the browser's storage, which an older page or a person may have written. */
export function decodeConversation(value: unknown): Conversation | null {
  if (!isRecord(value) || typeof value["id"] !== "string" || !Array.isArray(value["messages"])) return null;
  const messages = value["messages"].map(decodeMessage).filter((message) => message !== null);
  const ids = new Set(messages.map((message) => message.id));
  const leaf = typeof value["leaf"] === "string" && ids.has(value["leaf"]) ? value["leaf"] : (messages.at(-1)?.id ?? null);
  return {
    id: value["id"],
    title: typeof value["title"] === "string" ? value["title"] : "New chat",
    createdAt: numberOr(value["createdAt"], 0),
    updatedAt: numberOr(value["updatedAt"], 0),
    messages,
    leaf,
  };
}

function decodeMessage(value: unknown): Message | null {
  if (!isRecord(value) || typeof value["id"] !== "string" || typeof value["text"] !== "string") return null;
  const role = value["role"];
  if (role !== "user" && role !== "assistant") return null;
  return {
    id: value["id"],
    parent: typeof value["parent"] === "string" ? value["parent"] : null,
    role,
    text: value["text"],
    createdAt: numberOr(value["createdAt"], 0),
    facts: role === "assistant" ? decodeFacts(value["facts"]) : null,
  };
}

const FINISHES: readonly unknown[] = ["stop", "length", "stopped", "error", "interrupted"];

function decodeFacts(value: unknown): AnswerFacts {
  const stored = isRecord(value) ? value : {};
  const nodes = Array.isArray(stored["nodes"]) ? stored["nodes"].filter(isRecord) : [];
  return {
    model: typeof stored["model"] === "string" ? stored["model"] : "",
    nodes: nodes.map((node) => ({ name: String(node["name"] ?? ""), layers: String(node["layers"] ?? "") })),
    numReroutes: numberOr(stored["numReroutes"], 0),
    // An answer still marked as streaming was cut off when its page was closed.
    finish: FINISHES.includes(stored["finish"]) ? (stored["finish"] as Finish) : "interrupted",
    error: typeof stored["error"] === "string" ? stored["error"] : null,
    numTokens: numberOr(stored["numTokens"], 0),
    timeToFirstTokenMs: numberOr(stored["timeToFirstTokenMs"], null),
    tokensPerSecond: numberOr(stored["tokensPerSecond"], null),
    reasoningMs: numberOr(stored["reasoningMs"], null),
  };
}

function numberOr<T>(value: unknown, otherwise: T): number | T {
  return typeof value === "number" && Number.isFinite(value) ? value : otherwise;
}
