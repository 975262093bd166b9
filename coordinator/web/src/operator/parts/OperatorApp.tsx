import { useEffect } from "preact/hooks";

import { Logo } from "../../components/Icons";
import { leave, outcome, overview, phase, session, staleReason } from "../state";
import { Audit } from "./Audit";
import { Cards } from "./Cards";
import { Certificate } from "./Certificate";
import { Invitations } from "./Invitations";
import { Keys } from "./Keys";
import { Models } from "./Models";
import { Nodes } from "./Nodes";
import { PlanSection } from "./Plan";
import { SignedOut } from "./SignedOut";

export function OperatorApp() {
  if (phase.value === "signed-out") return <SignedOut />;
  return (
    <div class="operator">
      <a class="skip" href="#nodes">Skip to the nodes</a>
      <Bar />
      <main class="operator-main" aria-busy={overview.value === null}>
        <Stale />
        {overview.value === null ? <p class="quiet pad" role="status">Looking at the pool…</p> : <Sections />}
      </main>
      <Toast />
    </div>
  );
}

function Bar() {
  return (
    <header class="bar">
      <Logo />
      <h1><bdi>{overview.value?.poolName || session.value?.poolName || "The pool"}</bdi></h1>
      {session.value !== null && <span class="badge">{session.value.isOpen ? "Open" : "By invitation"}</span>}
      <span class="spring" />
      <a class="button" href="./">Chat</a>
      <button type="button" class="button" data-testid="operator-sign-out" onClick={() => void leave()}>Sign out</button>
    </header>
  );
}

function Sections() {
  const seen = overview.value;
  if (seen === null) return null;
  return (
    <>
      <Cards overview={seen} />
      <Nodes overview={seen} />
      <PlanSection />
      <Models overview={seen} />
      <Invitations overview={seen} />
      <Keys overview={seen} />
      <Certificate overview={seen} />
      <Audit overview={seen} />
    </>
  );
}

function Stale() {
  return (
    <div role="status">
      {staleReason.value !== null && <p class="stale" data-testid="stale">{staleReason.value}{overview.value !== null && " What you see below may be old."}</p>}
    </div>
  );
}

const SHOWN_MS = 7_000;

/** The answer to the last thing that was asked for. A refusal stays until it has been read. */
function Toast() {
  const seen = outcome.value;
  useEffect(() => {
    if (seen === null || seen.isBad) return undefined;
    const timer = setTimeout(() => (outcome.value = null), SHOWN_MS);
    return () => clearTimeout(timer);
  }, [seen]);
  return (
    <div class="notices toast" role="status">
      {seen !== null && (
        <p class="notice" data-testid="outcome">
          <span dir="auto">{seen.text}</span>
          <button type="button" class="text-button" onClick={() => (outcome.value = null)}>Got it</button>
        </p>
      )}
    </div>
  );
}
