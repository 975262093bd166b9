import { Logo } from "../../components/Icons";
import { enter, session, signInError } from "../state";

/** There is no password: a link from the coordinator's own command line is the way in. */
export function SignedOut() {
  const who = session.value;
  return (
    <main class="gate" data-testid="operator-signed-out">
      <Logo />
      <h1>{who?.poolName ? <>Run <bdi>{who.poolName}</bdi></> : "Run the pool"}</h1>
      <p>This page is for whoever runs the pool. To sign in, run this on the coordinator’s computer and open the link that it prints:</p>
      <p><code>decentllm-coordinator operator-link</code></p>
      <p class="quiet">A link works once, within 24 hours.{who?.role === "chat" && " You are signed in to the chat; that is not enough for this page."}</p>
      <p class="field-error" role="alert" data-testid="operator-error">{signInError.value}</p>
      <div class="dialog-actions">
        <a class="button" href="./">To the chat</a>
        <button type="button" class="button" onClick={() => void enter(null)}>Try again</button>
      </div>
    </main>
  );
}
