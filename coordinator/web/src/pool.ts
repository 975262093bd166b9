// What the pool is like right now, asked for every few seconds while somebody looks at the page.

import { computed, effect, signal, untracked } from "@preact/signals";

import { needsSignIn, noteFailure, refreshSession, session } from "./account";
import { fetchPool, type Pool, type PoolModel } from "./api";
import { sentenceOf, Unreachable } from "./errors";
import { settings } from "./settings";

/** While something is about to change, people watch; a ready pool is asked less often. */
const POLL_WAITING_MS = 2_000;
const POLL_READY_MS = 8_000;

export const pool = signal<Pool | null>(null);
export const poolError = signal<string | null>(null);

/** The model that answers: the chosen one if the pool has it, else the first that is ready. */
export const model = computed<PoolModel | null>(() => {
  const models = pool.value?.models ?? [];
  const chosen = models.find((candidate) => candidate.id === settings.value.model);
  return chosen ?? models.find((candidate) => candidate.state === "ready") ?? models[0] ?? null;
});

/** Why nobody can be asked yet; null once it is known which model answers. A model that is not ready has a queue. */
export const whyNobodyToAsk = computed<string | null>(() => {
  if (model.value !== null) return null;
  if (poolError.value !== null) return poolError.value;
  return pool.value === null ? "Looking for the pool’s models. You can send in a moment." : "This pool serves no model yet.";
});

let timer: ReturnType<typeof setTimeout> | undefined;
let lastText = "";

export async function refreshPool(): Promise<void> {
  clearTimeout(timer);
  try {
    if (session.value === null) await refreshSession();
    if (!needsSignIn.value) take(await fetchPool());
    poolError.value = null;
  } catch (error) {
    await noteFailure(error);
    if (!needsSignIn.value) poolError.value = pollSentence(error);
  }
  clearTimeout(timer);
  // Signed out there is nothing to ask for: signing in begins anew.
  if (!needsSignIn.value) timer = setTimeout(() => void pollIfSeen(), isCalm() ? POLL_READY_MS : POLL_WAITING_MS);
}

function take(fresh: Pool): void {
  // The same answer again must not draw the page again.
  const text = JSON.stringify(fresh);
  if (text !== lastText) pool.value = fresh;
  lastText = text;
}

function pollSentence(error: unknown): string {
  return error instanceof Unreachable ? "The coordinator cannot be reached. Trying again…" : sentenceOf(error);
}

function isCalm(): boolean {
  return poolError.value === null && model.value?.state === "ready";
}

async function pollIfSeen(): Promise<void> {
  if (document.visibilityState === "visible" && !needsSignIn.value) await refreshPool();
}

/** Polls from now on; who signs out sees nothing of the pool, and who signs in sees it at once. */
export function startPolling(): void {
  document.addEventListener("visibilitychange", () => void pollIfSeen());
  effect(() => {
    if (needsSignIn.value) forget();
    else void untracked(refreshPool);
  });
}

function forget(): void {
  clearTimeout(timer);
  pool.value = null;
  lastText = "";
}
