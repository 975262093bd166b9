// What the forms accept. Each check gives the words to send or, field by field, one sentence on what is wrong.

export type Checked<Value, Field extends string> = { value: Value } | { problems: Partial<Record<Field, string>> };

export interface InvitationTerms {
  label: string;
  allows_chat: boolean;
  allows_nodes: boolean;
  max_uses: number | null;
  expires_in_s: number | null;
}

export interface KeyTerms {
  label: string;
  expires_in_s: number | null;
}

export interface ModelSource {
  spec: string;
  name: string;
}

export type SourceKind = "hub" | "folder" | "gguf";
/** How the nodes pack the weights while they load them: not at all, or in so many bits (protocol/quantisation.py). */
export type Packing = "" | "int8" | "int4";

export interface InvitationForm {
  label: string;
  allowsChat: boolean;
  allowsNodes: boolean;
  uses: string;
  days: string;
}

export interface KeyForm {
  label: string;
  days: string;
}

export interface ModelForm {
  kind: SourceKind;
  spec: string;
  packing: Packing;
  name: string;
}

/** The coordinator's own limits (coordinator/accounts/checks.py). */
export const MAX_LABEL_CHARACTERS = 64;
export const MAX_USES = 1_000_000;
export const MAX_DAYS = 3660;
const DAY_S = 86_400;
const MAX_SPEC_CHARACTERS = 1_000;
const MAX_NAME_CHARACTERS = 64;
const HUB_ID = /^[A-Za-z0-9][\w.-]{0,95}\/[A-Za-z0-9][\w.-]{0,95}(?:@[\w./-]+)?$/;
/** What has no shape on the screen: controls, joiners, direction marks, line ends, odd blanks (Python's isprintable). */
const UNSHOWABLE = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;

export function checkInvitation(form: InvitationForm): Checked<InvitationTerms, "label" | "allows" | "uses" | "days"> {
  const uses = numberIn(form.uses, 1, MAX_USES);
  const days = numberIn(form.days, 1, MAX_DAYS);
  return checked(
    {
      label: form.label.trim(),
      allows_chat: form.allowsChat,
      allows_nodes: form.allowsNodes,
      max_uses: uses ?? null,
      expires_in_s: secondsOf(days),
    },
    {
      label: labelProblem(form.label),
      allows: form.allowsChat || form.allowsNodes ? null : "Choose at least one thing that the invitation is for.",
      uses: uses === undefined ? `Give a whole number from 1 to ${MAX_USES.toLocaleString("en")}, or leave it empty.` : null,
      days: days === undefined ? DAYS_PROBLEM : null,
    },
  );
}

export function checkKey(form: KeyForm): Checked<KeyTerms, "label" | "days"> {
  const days = numberIn(form.days, 1, MAX_DAYS);
  return checked(
    { label: form.label.trim(), expires_in_s: secondsOf(days) },
    { label: labelProblem(form.label), days: days === undefined ? DAYS_PROBLEM : null },
  );
}

export function checkModel(form: ModelForm): Checked<ModelSource, "spec" | "name"> {
  const spec = form.spec.trim();
  const name = form.name.trim();
  const whole = form.packing === "" ? spec : `${spec}:${form.packing}`;
  return checked({ spec: whole, name }, { spec: specProblem(form.kind, spec), name: nameProblem(name) });
}

const DAYS_PROBLEM = `Give a whole number of days from 1 to ${MAX_DAYS.toLocaleString("en")}, or leave it empty.`;

function checked<Value, Field extends string>(value: Value, found: Record<Field, string | null>): Checked<Value, Field> {
  const problems: Partial<Record<Field, string>> = {};
  for (const field of Object.keys(found) as Field[]) {
    const problem = found[field];
    if (problem !== null) problems[field] = problem;
  }
  return Object.keys(problems).length === 0 ? { value } : { problems };
}

function labelProblem(text: string): string | null {
  const label = text.trim();
  if (label === "") return "Give it a name, so that you know it again.";
  if ([...label].length > MAX_LABEL_CHARACTERS) return `The name may have at most ${MAX_LABEL_CHARACTERS} characters.`;
  return UNSHOWABLE.test(label) ? "The name has a character that cannot be shown." : null;
}

function nameProblem(name: string): string | null {
  if (name.length > MAX_NAME_CHARACTERS) return `The name may have at most ${MAX_NAME_CHARACTERS} characters.`;
  return UNSHOWABLE.test(name) ? "The name has a character that cannot be shown." : null;
}

const ABSOLUTE = /^(?:[/~]|[A-Za-z]:[\\/])/;

function specProblem(kind: SourceKind, spec: string): string | null {
  if (spec.length > MAX_SPEC_CHARACTERS || UNSHOWABLE.test(spec)) return "This is too long, or has a character that cannot be shown.";
  if (kind === "hub") return HUB_ID.test(spec) ? null : "A model on the hub is named like owner/name, or owner/name@revision.";
  if (!ABSOLUTE.test(spec)) return "Give the whole path on the coordinator’s computer, such as /srv/models/qwen.";
  const isFile = /\.gguf$/i.test(spec);
  if (kind === "gguf") return isFile ? null : "The file’s name must end in .gguf.";
  return isFile ? "This is a GGUF file: choose “GGUF file” above." : null;
}

/** Null for an empty field, undefined for what is no such number. */
function numberIn(text: string, least: number, most: number): number | null | undefined {
  const trimmed = text.trim();
  if (trimmed === "") return null;
  const number = /^\d{1,9}$/.test(trimmed) ? Number(trimmed) : Number.NaN;
  if (!(number >= least && number <= most)) return undefined;
  return number;
}

function secondsOf(days: number | null | undefined): number | null {
  return days == null ? null : days * DAY_S;
}
