import { needsSignIn, session } from "../account";
import { describeModel } from "../layers";
import { model, pool, poolError } from "../pool";
import { change } from "../settings";
import { CheckIcon, DownIcon } from "./Icons";
import { Popover } from "./Popover";

export function ModelMenu() {
  if (needsSignIn.value) return <bdi class="model-name pool-title">{session.value?.poolName}</bdi>;
  const chosen = model.value;
  const models = pool.value?.models ?? [];
  const name = chosen?.id ?? (pool.value === null ? (poolError.value === null ? "Looking for the pool…" : "No connection") : "No model yet");
  const state = poolError.value !== null ? "lost" : (chosen?.state ?? "incomplete");
  const trigger = (
    <>
      <span class={`dot dot-${state}`} aria-hidden="true" />
      <bdi class="model-name" data-testid="model-name">{name}</bdi>
      <DownIcon />
    </>
  );
  return (
    <Popover label={`Model: ${name}`} trigger={trigger} triggerClass="model-button">
      {(close) => (
        <div class="model-list">
          {models.length === 0 && <p class="quiet pad">This pool serves no model yet.</p>}
          {models.map((candidate) => (
            <button type="button" key={candidate.id} class="model-option" aria-pressed={candidate.id === chosen?.id}
              onClick={() => {
                change({ model: candidate.id });
                close();
              }}>
              <span class={`dot dot-${candidate.state}`} aria-hidden="true" />
              <span class="model-option-text">
                <bdi>{candidate.id}</bdi>
                <small>{describeModel(candidate)}</small>
              </span>
              {candidate.id === chosen?.id && <CheckIcon />}
            </button>
          ))}
        </div>
      )}
    </Popover>
  );
}
