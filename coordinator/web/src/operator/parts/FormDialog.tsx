import type { ComponentChildren } from "preact";
import { useRef, useState } from "preact/hooks";

import { Dialog } from "../../components/Dialog";
import { sentenceOf } from "../../errors";
import type { Checked } from "../forms";
import { perform } from "../state";

interface FormDialogProps<Form, Value, Field extends string> {
  title: string;
  verb: string;
  empty: Form;
  check: (form: Form) => Checked<Value, Field>;
  /** Sends it; what is shown afterwards, for the only time, or null when the dialog may close. */
  send: (value: Value) => Promise<ComponentChildren>;
  done: string;
  onClose: () => void;
  fields: (form: Form, change: (part: Partial<Form>) => void, problems: Partial<Record<Field, string>>) => ComponentChildren;
}

/** A form in a dialog: checked here, sent, refused in place; what can be shown only once is shown before it closes. */
export function FormDialog<Form, Value, Field extends string>(props: FormDialogProps<Form, Value, Field>) {
  const { title, verb, onClose, fields } = props;
  const state = useForm(props);
  const sentence = state.refusal ?? (Object.keys(state.problems).length > 0 ? "Some fields need another look." : "");
  return (
    <Dialog title={title} onClose={onClose} isSticky isWide testId="form-dialog">
      {(close) => state.result !== null ? <Shown close={close}>{state.result}</Shown> : (
        <form class="form" ref={state.element} noValidate onSubmit={(event) => { event.preventDefault(); void state.submit(close); }}>
          {fields(state.form, state.change, state.problems)}
          <p class="field-error" role="alert" data-testid="form-error">{sentence}</p>
          <div class="dialog-actions">
            <button type="button" class="button" onClick={close}>Cancel</button>
            <button type="submit" class="button is-primary" data-testid="form-submit" aria-disabled={state.isBusy}>
              {state.isBusy ? "One moment…" : verb}
            </button>
          </div>
        </form>
      )}
    </Dialog>
  );
}

function useForm<Form, Value, Field extends string>({ title, empty, check, send, done }: FormDialogProps<Form, Value, Field>) {
  const [form, setForm] = useState(empty);
  const [problems, setProblems] = useState<Partial<Record<Field, string>>>({});
  const [refusal, setRefusal] = useState<string | null>(null);
  const [isBusy, setIsBusy] = useState(false);
  const [result, setResult] = useState<ComponentChildren>(null);
  const element = useRef<HTMLFormElement>(null);
  const change = (part: Partial<Form>): void => {
    setForm({ ...form, ...part });
    setProblems({});
    setRefusal(null);
  };
  const sendChecked = async (value: Value, close: () => void): Promise<void> => {
    setIsBusy(true);
    try {
      const shown = await perform(title, () => send(value), done);
      if (shown === null) close();
      else setResult(shown);
    } catch (error) {
      setRefusal(sentenceOf(error));
    }
    setIsBusy(false);
  };
  const submit = async (close: () => void): Promise<void> => {
    if (isBusy) return;
    const outcome = check(form);
    if ("value" in outcome) return sendChecked(outcome.value, close);
    setProblems(outcome.problems);
    requestAnimationFrame(() => element.current?.querySelector<HTMLElement>("[aria-invalid='true']")?.focus());
  };
  return { form, problems, refusal, isBusy, result, element, change, submit };
}

function Shown({ children, close }: { children: ComponentChildren; close: () => void }) {
  return (
    <>
      {children}
      <div class="dialog-actions">
        <button type="button" class="button is-primary" data-testid="form-done" onClick={close}>Done</button>
      </div>
    </>
  );
}
