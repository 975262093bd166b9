import { current, showVersion } from "../chat";
import { versionsOf } from "../conversation";
import { LeftIcon, RightIcon } from "./Icons";

/** Steps through what else was asked, or answered, at this place. */
export function Versions({ id, isLocked }: { id: string; isLocked: boolean }) {
  const { ids, index } = versionsOf(current.value, id);
  if (ids.length < 2) return null;
  const step = (by: number) => () => {
    const target = ids[index + by];
    if (target !== undefined) showVersion(target);
  };
  return (
    <span class="versions" role="group" aria-label="Versions">
      <button type="button" class="small-button" onClick={step(-1)} disabled={index === 0 || isLocked} aria-label="Previous version"><LeftIcon /></button>
      <span aria-live="off">{index + 1}<span class="sr-only"> of </span><span aria-hidden="true">/</span>{ids.length}</span>
      <button type="button" class="small-button" onClick={step(1)} disabled={index === ids.length - 1 || isLocked} aria-label="Next version"><RightIcon /></button>
    </span>
  );
}
