// The plan, asked for apart from the overview: it is longer, and changes only when nodes come and go.

import { effect, signal, untracked } from "@preact/signals";

import { sentenceOf } from "../errors";
import { fetchPlan } from "./actions";
import type { Plan } from "./plan";
import { phase } from "./state";

const POLL_MS = 6_000;

export const plan = signal<Plan | null>(null);
/** Why there is none yet, or why the one that is shown may be old. */
export const planError = signal<string | null>(null);

let timer: ReturnType<typeof setTimeout> | undefined;
let lastText = "";
/** Counts questions: an answer that a later one has overtaken, or that came after signing out, is none. */
let numAsked = 0;

export async function refreshPlan(): Promise<void> {
  clearTimeout(timer);
  numAsked += 1;
  const number = numAsked;
  try {
    const fresh = await fetchPlan();
    if (number === numAsked) take(fresh);
  } catch (error) {
    if (number === numAsked) planError.value = sentenceOf(error);
  }
  if (number === numAsked) timer = setTimeout(() => void refreshIfSeen(), POLL_MS);
}

function take(fresh: Plan): void {
  // The same answer again must not draw a thousand rows again.
  const text = JSON.stringify(fresh);
  if (text !== lastText) plan.value = fresh;
  lastText = text;
  planError.value = null;
}

async function refreshIfSeen(): Promise<void> {
  if (document.visibilityState === "visible" && phase.value === "signed-in") await refreshPlan();
}

function forget(): void {
  clearTimeout(timer);
  numAsked += 1;
  plan.value = null;
  planError.value = null;
  lastText = "";
}

/** From now on for as long as an operator is signed in and looks. Returns how to stop. */
export function startPlanPolling(): () => void {
  const look = (): void => void refreshIfSeen();
  document.addEventListener("visibilitychange", look);
  const stop = effect(() => {
    if (phase.value === "signed-in") void untracked(refreshPlan);
    else untracked(forget);
  });
  return () => {
    document.removeEventListener("visibilitychange", look);
    stop();
    forget();
  };
}
