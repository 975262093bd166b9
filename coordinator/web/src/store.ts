// Conversations in the browser's own database. They never leave it except as requests to the pool.
// Titles are kept apart from texts, so that the sidebar need not read every conversation.

import { type DBSchema, type IDBPDatabase, openDB } from "idb";

import { type Conversation, decodeConversation, type Summary, summaryOf } from "./conversation";
import { isRecord } from "./errors";

interface Schema extends DBSchema {
  conversations: { key: string; value: Conversation };
  summaries: { key: string; value: Summary };
}

export interface ConversationStore {
  /** Whether conversations outlive the page. */
  isLasting: boolean;
  list(): Promise<Summary[]>;
  load(id: string): Promise<Conversation | null>;
  save(conversation: Conversation): Promise<void>;
  remove(id: string): Promise<void>;
  clear(): Promise<void>;
}

/** The lasting store, or one in memory where the browser forbids storage (private windows, blocked site data). */
export async function openStore(name = "decentllm"): Promise<ConversationStore> {
  try {
    const database = await openDB<Schema>(name, 1, {
      upgrade(opened) {
        opened.createObjectStore("conversations", { keyPath: "id" });
        opened.createObjectStore("summaries", { keyPath: "id" });
      },
    });
    return new DatabaseStore(database);
  } catch {
    return new MemoryStore();
  }
}

const BOTH = ["conversations", "summaries"] as const;

class DatabaseStore implements ConversationStore {
  readonly isLasting = true;
  constructor(private readonly database: IDBPDatabase<Schema>) {}

  async list(): Promise<Summary[]> {
    return newestFirst((await this.database.getAll("summaries")).filter(isSummary));
  }

  async load(id: string): Promise<Conversation | null> {
    return decodeConversation(await this.database.get("conversations", id));
  }

  async save(conversation: Conversation): Promise<void> {
    const transaction = this.database.transaction(BOTH, "readwrite");
    await Promise.all([
      transaction.objectStore("conversations").put(conversation),
      transaction.objectStore("summaries").put(summaryOf(conversation)),
      transaction.done,
    ]);
  }

  async remove(id: string): Promise<void> {
    const transaction = this.database.transaction(BOTH, "readwrite");
    await Promise.all([...BOTH.map((name) => transaction.objectStore(name).delete(id)), transaction.done]);
  }

  async clear(): Promise<void> {
    const transaction = this.database.transaction(BOTH, "readwrite");
    await Promise.all([...BOTH.map((name) => transaction.objectStore(name).clear()), transaction.done]);
  }
}

export class MemoryStore implements ConversationStore {
  readonly isLasting = false;
  private readonly conversations = new Map<string, Conversation>();

  list(): Promise<Summary[]> {
    return Promise.resolve(newestFirst([...this.conversations.values()].map(summaryOf)));
  }

  load(id: string): Promise<Conversation | null> {
    return Promise.resolve(this.conversations.get(id) ?? null);
  }

  save(conversation: Conversation): Promise<void> {
    this.conversations.set(conversation.id, conversation);
    return Promise.resolve();
  }

  remove(id: string): Promise<void> {
    this.conversations.delete(id);
    return Promise.resolve();
  }

  clear(): Promise<void> {
    this.conversations.clear();
    return Promise.resolve();
  }
}

function isSummary(value: unknown): value is Summary {
  return isRecord(value) && typeof value["id"] === "string" && typeof value["title"] === "string";
}

export function newestFirst(summaries: Summary[]): Summary[] {
  return summaries.toSorted((one, other) => other.updatedAt - one.updatedAt);
}
