import { useState } from "preact/hooks";

import { CopyField } from "../../components/CopyField";
import { makeKey, revokeKey } from "../actions";
import { checkKey, type KeyForm, type KeyTerms, MAX_LABEL_CHARACTERS } from "../forms";
import type { Key, MadeKey, Overview } from "../overview";
import { seenAtS } from "../state";
import { agoOf, keyMark, untilOf } from "../words";
import { Field } from "./Field";
import { FormDialog } from "./FormDialog";
import { Ago, StateMark } from "./Mark";
import { keepFocus, Section, useQuestion } from "./Section";
import { type Column, Table } from "./Table";

const SECTION = "keys";

export function Keys({ overview }: { overview: Overview }) {
  const [isMaking, setIsMaking] = useState(false);
  const [question, ask] = useQuestion(SECTION);
  const askRevoke = (key: Key): void => ask({
    title: `Revoke “${key.label}”?`,
    consequence: "Programs that use this key are refused from now on. This cannot be undone.",
    verb: "Revoke the key",
    name: `revoke ${key.id}`,
    done: `“${key.label}” is revoked.`,
    work: () => revokeKey(key.id),
  });
  const make = <button type="button" class="button is-primary" data-testid="make-key" aria-haspopup="dialog" onClick={() => setIsMaking(true)}>Make a key</button>;
  return (
    <Section id={SECTION} title="API keys" action={make} hint="For programs that use the pool’s OpenAI-compatible interface.">
      <Table label="API keys" testId="keys" rows={overview.keys} keyOf={(key) => key.id} empty="No key has been made."
        columns={[LABEL, STATE, LAST_USED, EXPIRES, revokeColumn(askRevoke)]} />
      {question}
      {isMaking && <MakeKey onClose={() => { setIsMaking(false); keepFocus(SECTION); }} />}
    </Section>
  );
}

const LABEL: Column<Key> = { name: "Name", isHead: true, cell: (key) => <><bdi>{key.label || key.id}</bdi><small class="id">sk-{key.id}-…</small></> };
const STATE: Column<Key> = { name: "State", cell: (key) => <StateMark mark={keyMark(key, seenAtS.value)} /> };
const LAST_USED: Column<Key> = { name: "Last used", cell: (key) => <Ago text={agoOf(key.lastUsedS, seenAtS.value)} timeS={key.lastUsedS} /> };
const EXPIRES: Column<Key> = { name: "Expires", cell: (key) => <Ago text={untilOf(key.expiresS, seenAtS.value)} timeS={key.expiresS} /> };

function revokeColumn(askRevoke: (key: Key) => void): Column<Key> {
  return {
    name: "Actions", isActions: true,
    cell: (key) => !key.isRevoked && (
      <button type="button" class="button is-quiet-danger" aria-haspopup="dialog" aria-label={`Revoke ${key.label || key.id}`} onClick={() => askRevoke(key)}>Revoke</button>
    ),
  };
}

function MakeKey({ onClose }: { onClose: () => void }) {
  const empty: KeyForm = { label: "", days: "" };
  const send = async (terms: KeyTerms) => <Secret made={await makeKey(terms)} />;
  return (
    <FormDialog title="Make an API key" verb="Make the key" empty={empty} check={checkKey} onClose={onClose} done="" send={send}
      fields={(form, change, problems) => (
        <>
          <Field label="Name" value={form.label} onInput={(label) => change({ label })} problem={problems.label} maxLength={MAX_LABEL_CHARACTERS}
            hint="The program or person that will use it." />
          <Field label="Valid for days" isNumber value={form.days} onInput={(days) => change({ days })} problem={problems.days} hint="Empty: until you revoke it." />
        </>
      )} />
  );
}

function Secret({ made: { key, secret } }: { made: MadeKey }) {
  return (
    <div class="once" data-testid="made-key">
      <p class="callout" role="status"><strong>“<bdi>{key.label}</bdi>” is made.</strong> Copy it now: it is shown only this once.</p>
      <CopyField label="API key" text={secret} hint="Whoever has it can use this pool. Keep it like a password." testId="made-key-secret" />
      <CopyField label="Base address" text={new URL("v1", location.href).href} testId="made-key-base" />
    </div>
  );
}
