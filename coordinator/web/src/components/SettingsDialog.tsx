import { useState } from "preact/hooks";

import { removeAll, summaries } from "../chat";
import { plural } from "../format";
import { change, MAX_MAX_TOKENS, MAX_TEMPERATURE, settings } from "../settings";
import { focusComposer, isSettingsOpen } from "../view";
import { Dialog } from "./Dialog";

export function SettingsDialog() {
  const onClose = (): void => {
    isSettingsOpen.value = false;
    focusComposer();
  };
  return (
    <Dialog title="Settings" onClose={onClose}>
      {() => (
        <>
          <SystemPrompt />
          <Temperature />
          <MaxTokens />
          <Forget />
        </>
      )}
    </Dialog>
  );
}

function SystemPrompt() {
  return (
    <div class="field">
      <label for="system-prompt">Instructions for the model</label>
      <textarea id="system-prompt" data-testid="system-prompt" rows={4} dir="auto" placeholder="For example: answer briefly, and in plain words."
        value={settings.value.systemPrompt} onInput={(event) => change({ systemPrompt: event.currentTarget.value })} />
      <p class="quiet">Sent before every conversation as the system prompt.</p>
    </div>
  );
}

function Temperature() {
  const { temperature } = settings.value;
  return (
    <div class="field">
      <div class="field-head">
        <label for="temperature">Temperature</label>
        <output for="temperature">{temperature === null ? "pool’s default" : temperature.toFixed(1)}</output>
      </div>
      <input id="temperature" data-testid="temperature" type="range" min={0} max={MAX_TEMPERATURE} step={0.1} value={temperature ?? 0.7}
        class={temperature === null ? "is-default" : ""} onInput={(event) => change({ temperature: Number(event.currentTarget.value) })} />
      <div class="field-head quiet">
        <span>Low is steady, high is varied.</span>
        {temperature !== null && <button type="button" class="text-button" onClick={() => change({ temperature: null })}>Use the default</button>}
      </div>
    </div>
  );
}

function MaxTokens() {
  const { maxTokens } = settings.value;
  const set = (text: string): void => {
    const number = Math.round(Number(text));
    change({ maxTokens: text.trim() === "" || !(number >= 1) ? null : Math.min(number, MAX_MAX_TOKENS) });
  };
  return (
    <div class="field">
      <label for="max-tokens">Longest answer, in tokens</label>
      <input id="max-tokens" data-testid="max-tokens" type="number" inputmode="numeric" min={1} max={MAX_MAX_TOKENS} placeholder="pool’s default"
        value={maxTokens ?? ""} onChange={(event) => set(event.currentTarget.value)} />
    </div>
  );
}

function Forget() {
  const [isAsking, setIsAsking] = useState(false);
  const count = summaries.value.length;
  const forget = (): void => {
    setIsAsking(false);
    void removeAll();
  };
  return (
    <div class="field forget">
      <p class="quiet">Conversations and settings are kept in this browser and nowhere else. Signing out leaves them here.</p>
      {isAsking ? (
        <div class="forget-actions">
          <button type="button" class="button" onClick={() => setIsAsking(false)}>Keep them</button>
          <button type="button" class="button is-danger" onClick={forget}>Delete {plural(count, "conversation")} for good</button>
        </div>
      ) : (
        <button type="button" class="button" disabled={count === 0} onClick={() => setIsAsking(true)}>Delete all conversations</button>
      )}
    </div>
  );
}
