import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";

import { Confirm, type Question } from "./Confirm";

interface SectionProps {
  id: string;
  title: string;
  hint?: ComponentChildren;
  action?: ComponentChildren;
  children: ComponentChildren;
}

export function Section({ id, title, hint, action, children }: SectionProps) {
  return (
    <section class="section" id={id} aria-labelledby={`${id}-title`} data-testid={`section-${id}`}>
      <div class="section-head">
        <h2 id={`${id}-title`} tabindex={-1}>{title}</h2>
        {action}
      </div>
      {hint !== undefined && <p class="quiet section-hint">{hint}</p>}
      {children}
    </section>
  );
}

/** A section's question, if one is open. What was asked about may be gone afterwards, and the focus with it. */
export function useQuestion(sectionId: string): [ComponentChildren, (question: Question) => void] {
  const [question, setQuestion] = useState<Question | null>(null);
  const onClose = (): void => {
    setQuestion(null);
    keepFocus(sectionId);
  };
  return [question !== null && <Confirm question={question} onClose={onClose} />, setQuestion];
}

export function keepFocus(sectionId: string): void {
  requestAnimationFrame(() => {
    if (document.activeElement === document.body) document.getElementById(`${sectionId}-title`)?.focus();
  });
}
