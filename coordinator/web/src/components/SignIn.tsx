import { useEffect, useId, useRef, useState } from "preact/hooks";

import { hasEnded, isSigningIn, session, signInError, signInWith } from "../account";
import { readPasted } from "../joinLink";
import { Logo } from "./Icons";

/** In place of the page's middle when there is nothing to read, else in place of the composer. */
export function SignIn({ isWhole }: { isWhole: boolean }) {
  return isWhole ? (
    <main class="welcome sign-in-page">
      <Logo />
      <SignInForm isWhole />
    </main>
  ) : (
    <footer class="composer-dock"><SignInForm isWhole={false} /></footer>
  );
}

function SignInForm({ isWhole }: { isWhole: boolean }) {
  const name = session.value?.poolName || "This pool";
  const Title = isWhole ? "h1" : "h2";
  return (
    <section class={`sign-in ${isWhole ? "is-whole" : ""}`} data-testid="sign-in" aria-labelledby="sign-in-title">
      <Title id="sign-in-title">
        {hasEnded.value ? "Your session has ended" : <><bdi>{name}</bdi> is by invitation</>}
      </Title>
      <p class="quiet">
        {hasEnded.value
          ? "Sign in again to go on. Your chats and what you have typed are still here."
          : "To chat you need an invitation link from whoever runs this pool. Open the link, or paste it here."}
      </p>
      <TokenField />
    </section>
  );
}

function TokenField() {
  const id = useId();
  const field = useRef<HTMLInputElement>(null);
  const [text, setText] = useState("");
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    if (matchMedia("(pointer: fine)").matches) field.current?.focus();
  }, []);
  const shown = problem ?? signInError.value;
  const submit = (event: Event): void => {
    event.preventDefault();
    if (isSigningIn.value) return;
    const pasted = readPasted(text, location.host);
    setProblem("problem" in pasted ? pasted.problem : null);
    if ("token" in pasted) void signInWith(pasted.token);
    else field.current?.focus();
  };
  return (
    <form class="field sign-in-form" onSubmit={submit} noValidate>
      <label for={id}>Invitation link</label>
      <div class="copy-row">
        <input ref={field} id={id} type="text" data-testid="invite-field" value={text} autocomplete="off" autocapitalize="off"
          spellcheck={false} dir="ltr" placeholder="https://…/#invite=…" aria-invalid={shown !== null} aria-describedby={`${id}-error`}
          onInput={(event) => { setText(event.currentTarget.value); setProblem(null); signInError.value = null; }} />
        <button type="submit" class="button is-primary" data-testid="sign-in-button" aria-disabled={isSigningIn.value}>
          {isSigningIn.value ? "Signing in…" : "Sign in"}
        </button>
      </div>
      <p id={`${id}-error`} class="field-error" role="alert" data-testid="sign-in-error">{shown}</p>
    </form>
  );
}
