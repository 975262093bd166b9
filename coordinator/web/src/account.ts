// Who may chat here: nobody is asked on an open pool; a closed one wants a session, which an invitation begins.

import { computed, signal } from "@preact/signals";

import { isSignInNeeded, sentenceOf } from "./errors";
import { fetchSession, type Session, signIn, signOut, welcomeSentence } from "./session";

/** Null until the coordinator has said who is there. */
export const session = signal<Session | null>(null);
export const signInError = signal<string | null>(null);
export const isSigningIn = signal(false);
/** Said once after a link let somebody in, or failed to where it was not needed. */
export const greeting = signal<string | null>(null);
/** Signed in before in this page, and not by the person's own wish any more. */
export const hasEnded = signal(false);

export const needsSignIn = computed(() => session.value !== null && !session.value.canChat);

function take(next: Session): void {
  const before = session.value;
  if (before?.canChat === true && !next.canChat) {
    hasEnded.value = true;
    greeting.value = null;
  }
  if (next.canChat) {
    hasEnded.value = false;
    signInError.value = null;
  }
  // The same answer again must not draw the page again.
  if (JSON.stringify(before) !== JSON.stringify(next)) session.value = next;
}

/** Counts what changes who is signed in: an answer to a question that was asked before such a change is old news. */
let numChanges = 0;

/** Asks who is signed in; throws a PoolError when there is no answer. */
export async function refreshSession(): Promise<void> {
  const asked = numChanges;
  const answer = await fetchSession();
  if (asked === numChanges) take(answer);
}

export async function signInWith(token: string): Promise<void> {
  isSigningIn.value = true;
  signInError.value = null;
  try {
    const next = await signIn(token);
    numChanges += 1;
    take(next);
    greeting.value = welcomeSentence(next);
  } catch (error) {
    await failSignIn(sentenceOf(error));
  } finally {
    isSigningIn.value = false;
  }
}

/** Who can chat without it reads of the failure in a notice; all others in the form. */
async function failSignIn(sentence: string): Promise<void> {
  await refreshSession().catch(() => {}); // no answer: the pool's poll asks again, and says so
  if (needsSignIn.value || session.value === null) signInError.value = sentence;
  else greeting.value = sentence;
}

/** Ends the session. Throws a PoolError, and changes nothing, when the coordinator did not hear of it. */
export async function endSession(): Promise<void> {
  await signOut();
  numChanges += 1;
  greeting.value = null;
  await refreshSession();
  hasEnded.value = false;
}

/** To be called with whatever a request failed with: an ended session brings the sign-in back. */
export async function noteFailure(error: unknown): Promise<void> {
  if (isSignInNeeded(error)) await refreshSession().catch(() => {}); // no answer: nothing is known to have ended
}
