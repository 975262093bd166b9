import { InfoIcon } from "./Icons";
import { Popover } from "./Popover";

const SENTENCE =
  "Your messages are processed on computers of volunteers. Each computer that takes part in your answer, and whoever " +
  "runs the pool, can read your message and the answer. Do not send passwords or private data.";

/** In full before the first message, in short afterwards; the details are a click away in both. */
export function PrivacyNote({ isLong }: { isLong: boolean }) {
  return (
    <div class={`privacy-note ${isLong ? "is-long" : ""}`}>
      <p data-testid="privacy-note">
        {isLong ? SENTENCE : "Volunteers’ computers and whoever runs the pool can read this chat. Answers can be wrong."}
      </p>
      <WhoCanRead />
    </div>
  );
}

export function WhoCanRead() {
  const trigger = <><InfoIcon /><span>Who can read what?</span></>;
  return (
    <Popover label="Who can read what?" trigger={trigger} triggerClass="text-button who-button" testId="who-can-read">
      {() => <Details />}
    </Popover>
  );
}

function Details() {
  return (
    <div class="who-panel">
      <h2>Who can read what</h2>
      <dl>
        <dt>Computers that take part in your answer</dt>
        <dd>Your message and the answer. Each computes with a part of the model, and from the numbers that pass through it the text can be worked out. Under each answer you see which computers these were.</dd>
        <dt>Whoever runs the pool</dt>
        <dd>All messages and answers, who is signed in, and when. All of it passes through the pool’s coordinator.</dd>
        <dt>Other people in the pool</dt>
        <dd>Nothing of yours, unless their computer takes part in your answer.</dd>
        <dt>This browser</dt>
        <dd>Keeps your chats until you delete them. Whoever uses this browser can read them.</dd>
        <dt>The network in between</dt>
        <dd>{networkSentence()}</dd>
      </dl>
      <p class="quiet">For private data, run a pool of your own with computers that you trust.</p>
    </div>
  );
}

function networkSentence(): string {
  if (location.protocol === "https:") return "Nothing: this page and the pool speak over an encrypted connection.";
  const isOwn = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  if (isOwn) return "Nothing between this page and the coordinator: both run on this computer.";
  return "Everything between this page and the coordinator: this address begins with http:// and is not encrypted.";
}
