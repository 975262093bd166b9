import { useState } from "preact/hooks";

import { Dialog } from "../../components/Dialog";
import { sentenceOf } from "../../errors";
import { perform, underway } from "../state";

export interface Question {
  title: string;
  consequence: string;
  verb: string;
  /** The name under which the work is underway, and what is said when it is done. */
  name: string;
  done: string;
  work: () => Promise<void>;
}

interface ConfirmProps {
  question: Question;
  onClose: () => void;
}

/** Asks before something that cannot be taken back, and stays with the reason when it fails. */
export function Confirm({ question, onClose }: ConfirmProps) {
  const [problem, setProblem] = useState<string | null>(null);
  const isBusy = underway.value.has(question.name);
  const go = async (close: () => void): Promise<void> => {
    if (isBusy) return;
    setProblem(null);
    try {
      await perform(question.name, question.work, question.done);
      close();
    } catch (error) {
      setProblem(sentenceOf(error));
    }
  };
  return (
    <Dialog title={question.title} onClose={onClose} testId="confirm">
      {(close) => (
        <>
          <p>{question.consequence}</p>
          <p class="field-error" role="alert">{problem}</p>
          <div class="dialog-actions">
            <button type="button" class="button" onClick={close}>Cancel</button>
            <button type="button" class="button is-danger" data-testid="confirm-go" aria-disabled={isBusy} onClick={() => void go(close)}>
              {isBusy ? "One moment…" : question.verb}
            </button>
          </div>
        </>
      )}
    </Dialog>
  );
}
