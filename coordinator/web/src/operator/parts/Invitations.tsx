import { useState } from "preact/hooks";

import { CopyField } from "../../components/CopyField";
import { nodeCommand } from "../../joinLink";
import { makeInvitation, revokeInvitation } from "../actions";
import { checkInvitation, type InvitationForm, type InvitationTerms, MAX_LABEL_CHARACTERS } from "../forms";
import type { Invitation, MadeInvitation, Overview } from "../overview";
import { seenAtS, session } from "../state";
import { allowsOf, invitationMark, untilOf, usesOf } from "../words";
import { Check, Field } from "./Field";
import { FormDialog } from "./FormDialog";
import { Ago, StateMark } from "./Mark";
import { keepFocus, Section, useQuestion } from "./Section";
import { type Column, Table } from "./Table";

const SECTION = "invitations";

export function Invitations({ overview }: { overview: Overview }) {
  const [isMaking, setIsMaking] = useState(false);
  const [question, ask] = useQuestion(SECTION);
  const askRevoke = (invitation: Invitation): void => ask({
    title: `Revoke “${invitation.label}”?`,
    consequence: "Nobody can use its links any more, and everybody who signed in to the chat with it is signed out. Nodes that joined with it stay.",
    verb: "Revoke the invitation",
    name: `revoke ${invitation.id}`,
    done: `“${invitation.label}” is revoked.`,
    work: () => revokeInvitation(invitation.id),
  });
  const make = <button type="button" class="button is-primary" data-testid="make-invitation" aria-haspopup="dialog" onClick={() => setIsMaking(true)}>Make an invitation</button>;
  return (
    <Section id={SECTION} title="Links and invitations" action={make}>
      <OpenLinks overview={overview} />
      <Table label="Invitations" testId="invitations" rows={overview.invitations} keyOf={(invitation) => invitation.id}
        empty="No invitation has been made." columns={[LABEL, STATE, ALLOWS, USES, EXPIRES, revokeColumn(askRevoke)]} />
      {question}
      {isMaking && <MakeInvitation onClose={() => { setIsMaking(false); keepFocus(SECTION); }} />}
    </Section>
  );
}

/** An open pool's links hold no secret; a closed pool's are worth nothing without an invitation. */
function OpenLinks({ overview }: { overview: Overview }) {
  if (session.value?.isOpen !== true) {
    return <p class="quiet section-hint">This pool is by invitation: people and nodes get in with the links of an invitation.</p>;
  }
  return (
    <div class="links">
      <CopyField label="Chat link" text={overview.browserLink} hint="This pool is open: anybody who has it can chat." testId="browser-link" />
      <CopyField label="Join link for nodes" text={overview.joinLink} hint="Anybody who has it can contribute a computer." testId="join-link" />
    </div>
  );
}

const LABEL: Column<Invitation> = { name: "Name", isHead: true, cell: (invitation) => <bdi>{invitation.label || invitation.id}</bdi> };
const STATE: Column<Invitation> = { name: "State", cell: (invitation) => <StateMark mark={invitationMark(invitation, seenAtS.value)} /> };
const ALLOWS: Column<Invitation> = { name: "For", cell: allowsOf };
const USES: Column<Invitation> = { name: "Used", cell: usesOf };
const EXPIRES: Column<Invitation> = {
  name: "Expires", cell: (invitation) => <Ago text={untilOf(invitation.expiresS, seenAtS.value)} timeS={invitation.expiresS} />,
};

function revokeColumn(askRevoke: (invitation: Invitation) => void): Column<Invitation> {
  return {
    name: "Actions", isActions: true,
    cell: (invitation) => !invitation.isRevoked && (
      <button type="button" class="button is-quiet-danger" aria-haspopup="dialog" aria-label={`Revoke ${invitation.label || invitation.id}`} onClick={() => askRevoke(invitation)}>Revoke</button>
    ),
  };
}

function MakeInvitation({ onClose }: { onClose: () => void }) {
  const empty: InvitationForm = { label: "", allowsChat: true, allowsNodes: true, uses: "10", days: "7" };
  const send = async (terms: InvitationTerms) => <Links made={await makeInvitation(terms)} />;
  return (
    <FormDialog title="Make an invitation" verb="Make the invitation" empty={empty} check={checkInvitation} onClose={onClose} done="" send={send}
      fields={(form, change, problems) => (
        <>
          <Field label="Name" value={form.label} onInput={(label) => change({ label })} problem={problems.label} maxLength={MAX_LABEL_CHARACTERS}
            hint="Whoever uses it reads this name, for example “Friends of the lab”." />
          <fieldset class="checks">
            <legend>What it is for</legend>
            <Check label="Chat" hint="Sign in to the chat page." checked={form.allowsChat} onChange={(allowsChat) => change({ allowsChat })} />
            <Check label="Nodes" hint="Contribute a computer." checked={form.allowsNodes} onChange={(allowsNodes) => change({ allowsNodes })} />
            <p class="field-error">{problems.allows}</p>
          </fieldset>
          <div class="pair">
            <Field label="How many uses" isNumber value={form.uses} onInput={(uses) => change({ uses })} problem={problems.uses} hint="One per sign-in or new node. Empty: no limit." />
            <Field label="Valid for days" isNumber value={form.days} onInput={(days) => change({ days })} problem={problems.days} hint="Empty: until you revoke it." />
          </div>
        </>
      )} />
  );
}

function Links({ made: { invitation, joinLink, browserLink } }: { made: MadeInvitation }) {
  return (
    <div class="once" data-testid="made-invitation">
      <p class="callout" role="status"><strong>“<bdi>{invitation.label}</bdi>” is made.</strong> Copy its links now: they are shown only this once.</p>
      {invitation.allowsChat && <CopyField label="Invitation link for the chat" text={browserLink} testId="made-browser-link" />}
      {invitation.allowsNodes && <CopyField label="Invitation link for nodes" text={joinLink} hint="Opens the DecentLLM app." testId="made-join-link" />}
      {invitation.allowsNodes && <CopyField label="Command for nodes without a desktop" text={nodeCommand(joinLink)} testId="made-join-command" />}
    </div>
  );
}
