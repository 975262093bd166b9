import { AgainIcon, WarningIcon } from "./Icons";

interface ErrorNoteProps {
  message: string;
  retry: (() => void) | null;
}

export function ErrorNote({ message, retry }: ErrorNoteProps) {
  return (
    <div class="error-note" role="alert">
      <WarningIcon />
      <p data-testid="error" dir="auto">{message}</p>
      {retry !== null && (
        <button type="button" class="button" data-testid="retry" onClick={retry}><AgainIcon />Try again</button>
      )}
    </div>
  );
}
