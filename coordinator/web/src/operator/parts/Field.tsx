import { useId } from "preact/hooks";

interface FieldProps {
  label: string;
  value: string;
  onInput: (value: string) => void;
  problem?: string | undefined;
  hint?: string;
  placeholder?: string;
  isNumber?: boolean;
  maxLength?: number;
}

/** A text field that names itself, its hint and what is wrong with it. */
export function Field({ label, value, onInput, problem, hint, placeholder, isNumber = false, maxLength }: FieldProps) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <input id={id} type="text" inputmode={isNumber ? "numeric" : "text"} value={value} placeholder={placeholder} maxLength={maxLength}
        autocomplete="off" spellcheck={false} dir={isNumber ? "ltr" : "auto"} aria-invalid={problem !== undefined}
        aria-describedby={`${id}-hint ${id}-problem`} onInput={(event) => onInput(event.currentTarget.value)} />
      <p class="quiet" id={`${id}-hint`}>{hint}</p>
      <p class="field-error" id={`${id}-problem`}>{problem}</p>
    </div>
  );
}

interface ChoicesProps<Value extends string> {
  label: string;
  options: readonly { value: Value; name: string }[];
  value: Value;
  onChange: (value: Value) => void;
  hint?: string;
}

/** One of a few, all in sight. */
export function Choices<Value extends string>({ label, options, value, onChange, hint = "" }: ChoicesProps<Value>) {
  const id = useId();
  return (
    <div class="field">
      <span class="field-label" id={id}>{label}</span>
      <div class="choices" role="radiogroup" aria-labelledby={id} aria-describedby={`${id}-hint`}>
        {options.map((option) => (
          <label key={option.value}>
            <input type="radio" name={id} value={option.value} checked={option.value === value} onChange={() => onChange(option.value)} />
            <span>{option.name}</span>
          </label>
        ))}
      </div>
      <p class="quiet" id={`${id}-hint`}>{hint}</p>
    </div>
  );
}

export function Check({ label, hint, checked, onChange }: { label: string; hint: string; checked: boolean; onChange: (checked: boolean) => void }) {
  return (
    <label class="check">
      <input type="checkbox" checked={checked} onChange={(event) => onChange(event.currentTarget.checked)} />
      <span>{label}<small>{hint}</small></span>
    </label>
  );
}
