import { useId, useState } from "preact/hooks";

import { copyText } from "../clipboard";

interface CopyFieldProps {
  label: string;
  text: string;
  hint?: string;
  testId?: string;
}

const SHOWN_MS = 2_000;

type Outcome = "none" | "copied" | "failed";
const WORDS: Record<Outcome, string> = { none: "", copied: "Copied.", failed: "Not copied: select the text and copy it." };

/** Something to take elsewhere: readable, selectable, and copied with one click. */
export function CopyField({ label, text, hint, testId }: CopyFieldProps) {
  const id = useId();
  const [outcome, setOutcome] = useState<Outcome>("none");
  const copy = async (): Promise<void> => {
    setOutcome((await copyText(text)) ? "copied" : "failed");
    setTimeout(() => setOutcome("none"), SHOWN_MS);
  };
  return (
    <div class="field copy-field">
      <label for={id}>{label}</label>
      <div class="copy-row">
        <input id={id} type="text" readOnly value={text} data-testid={testId} dir="ltr" spellcheck={false}
          aria-describedby={hint === undefined ? undefined : `${id}-hint`} onFocus={(event) => event.currentTarget.select()} />
        <button type="button" class="button" onClick={() => void copy()} aria-label={`Copy: ${label}`}>
          {outcome === "copied" ? "Copied" : "Copy"}
        </button>
      </div>
      {hint !== undefined && <p class="quiet" id={`${id}-hint`}>{hint}</p>}
      <p class={outcome === "failed" ? "quiet" : "sr-only"} role="status">{WORDS[outcome]}</p>
    </div>
  );
}
