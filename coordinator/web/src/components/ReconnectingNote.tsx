/** Calm: the pool goes on with the answer while the page comes back for it. */
export function ReconnectingNote() {
  return (
    <div class="queue-note" role="status">
      <span class="queue-dots" aria-hidden="true"><i /><i /><i /></span>
      <p data-testid="reconnecting">The connection was interrupted. Coming back to the answer …</p>
    </div>
  );
}
