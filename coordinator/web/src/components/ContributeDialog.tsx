import { session } from "../account";
import { nodeCommand } from "../joinLink";
import { pool } from "../pool";
import { isContributeOpen } from "../view";
import { CopyField } from "./CopyField";
import { Dialog } from "./Dialog";

/** How to give a computer's time to this pool. */
export function ContributeDialog() {
  const joinLink = pool.value?.joinLink ?? null;
  return (
    <Dialog title="Contribute a computer" onClose={() => (isContributeOpen.value = false)} testId="contribute-dialog">
      {() => (
        <>
          <p>
            A computer with a graphics card can hold some of a model’s layers and help to answer. It stops by itself whenever
            you need the card: for a game, a film or your own work.
          </p>
          {joinLink === null ? <AskOperator /> : <Ways joinLink={joinLink} />}
        </>
      )}
    </Dialog>
  );
}

function AskOperator() {
  const isClosed = session.value?.isOpen === false;
  return (
    <p class="callout" data-testid="ask-operator">
      {isClosed
        ? "Computers join this pool by invitation. Ask whoever runs it for a join link, then open the link on that computer."
        : "The pool has given no join link yet. Ask whoever runs it for one, then open it on that computer."}
    </p>
  );
}

function Ways({ joinLink }: { joinLink: string }) {
  return (
    <ol class="ways">
      <li>
        <h3>With the app</h3>
        <p class="quiet">Install DecentLLM on that computer, then open this link there. The app asks before anything starts.</p>
        <a class="button is-primary" href={joinLink} data-testid="join-link">Open in the DecentLLM app</a>
        <CopyField label="Join link" text={joinLink} testId="join-link-text" />
      </li>
      <li>
        <h3>On a server, without a desktop</h3>
        <CopyField label="Command" text={nodeCommand(joinLink)} hint="For Linux, and for PowerShell on Windows." testId="join-command" />
      </li>
    </ol>
  );
}
