// What the operator page knows. It shows what the coordinator said last, and nothing that it has not said.

import { signal } from "@preact/signals";

import { PoolError, sentenceOf, Unreachable } from "../errors";
import { fetchSession, type Session, signIn, signOut } from "../session";
import { fetchOverview } from "./actions";
import type { Overview } from "./overview";

export type Phase = "asking" | "signed-out" | "signed-in";

const POLL_MS = 2_000;

export const phase = signal<Phase>("asking");
export const session = signal<Session | null>(null);
export const signInError = signal<string | null>(null);
export const overview = signal<Overview | null>(null);
/** Why what is shown may be old; null while the coordinator answers. */
export const staleReason = signal<string | null>(null);
export const seenAtS = signal(0);
/** The coordinator's answer to the last thing that was asked of it. */
export interface Outcome {
  text: string;
  isBad: boolean;
}

export const outcome = signal<Outcome | null>(null);
/** What is being asked of the coordinator right now, by the button's name: it cannot be pressed twice. */
export const underway = signal<ReadonlySet<string>>(new Set());

let timer: ReturnType<typeof setTimeout> | undefined;
let lastText = "";
/** Counts questions: an answer that a later one has overtaken is old news. */
let numAsked = 0;

function take(next: Session): void {
  session.value = next;
  phase.value = next.role === "operator" ? "signed-in" : "signed-out";
  if (phase.value === "signed-out") forget();
}

function forget(): void {
  clearTimeout(timer);
  numAsked += 1;
  overview.value = null;
  lastText = "";
  outcome.value = null;
}

let entered: Promise<void> = Promise.resolve();

/** With the token of a link that was just opened, or with the session that the browser has. One after the other: the
 *  first one's answer must not undo the second one's. */
export function enter(token: string | null): Promise<void> {
  entered = entered.then(() => enterNow(token));
  return entered;
}

async function enterNow(token: string | null): Promise<void> {
  signInError.value = null;
  try {
    take(token === null ? await fetchSession() : await signIn(token));
    if (token !== null && phase.value === "signed-out") signInError.value = "This link is not an operator’s.";
  } catch (error) {
    signInError.value = sentenceOf(error);
    // A link that fails takes nothing away from who is signed in already.
    if (token !== null) await fetchSession().then(take, () => (phase.value = "signed-out"));
    else phase.value = "signed-out";
  }
  if (phase.value === "signed-in") await refresh();
}

export function leave(): Promise<void> {
  entered = entered.then(leaveNow);
  return entered;
}

async function leaveNow(): Promise<void> {
  try {
    await signOut();
    take(await fetchSession());
  } catch (error) {
    outcome.value = { text: `You are still signed in. ${sentenceOf(error)}`, isBad: true };
  }
}

/** Asks for the overview, and again two seconds after the answer for as long as somebody looks. */
export async function refresh(): Promise<void> {
  clearTimeout(timer);
  numAsked += 1;
  const number = numAsked;
  try {
    const fresh = await fetchOverview();
    if (number === numAsked) show(fresh);
  } catch (error) {
    if (number === numAsked) fail(error);
  }
  if (number === numAsked && phase.value === "signed-in") timer = setTimeout(() => void pollIfSeen(), POLL_MS);
}

function show(fresh: Overview): void {
  // The same answer again must not draw the page again, but for the times in it.
  const text = JSON.stringify(fresh);
  if (text !== lastText) overview.value = fresh;
  lastText = text;
  seenAtS.value = Date.now() / 1000;
  staleReason.value = null;
}

function fail(error: unknown): void {
  if (hasLostSession(error)) {
    signInError.value = "Your session has ended. Make a new link to go on.";
    phase.value = "signed-out";
    forget();
  } else {
    staleReason.value = error instanceof Unreachable ? "The coordinator cannot be reached. Trying again…" : sentenceOf(error);
  }
}

function hasLostSession(error: unknown): boolean {
  return error instanceof PoolError && (error.status === 401 || error.code === "operators_only");
}

async function pollIfSeen(): Promise<void> {
  if (document.visibilityState === "visible" && phase.value === "signed-in") await refresh();
}

export function startPolling(): void {
  document.addEventListener("visibilitychange", () => void pollIfSeen());
}

/** Does one thing, then shows what the pool is like after it. Throws the PoolError for whoever has a place to show it. */
export async function perform<Result>(name: string, work: () => Promise<Result>, done: string): Promise<Result | null> {
  if (underway.value.has(name)) return null;
  underway.value = new Set([...underway.value, name]);
  try {
    const result = await work();
    if (done !== "") outcome.value = { text: done, isBad: false };
    await refresh();
    return result;
  } catch (error) {
    if (hasLostSession(error)) fail(error);
    throw error;
  } finally {
    underway.value = new Set([...underway.value].filter((other) => other !== name));
  }
}

/** For a button without a place of its own for errors: the page's notice has it. */
export function press(name: string, work: () => Promise<void>, done: string): void {
  perform(name, work, done).catch((error: unknown) => (outcome.value = { text: sentenceOf(error), isBad: true }));
}
