import { useEffect, useRef, useState } from "preact/hooks";

import { greeting, needsSignIn } from "../account";
import { currentLive, path, removed, storageWarning, undoRemove } from "../chat";
import { handleKey } from "../keyboard";
import { isContributeOpen, isDrawerOpen, isNarrow, isSettingsOpen, isSidebarOpen, isSignOutOpen } from "../view";
import { Composer } from "./Composer";
import { ContributeDialog } from "./ContributeDialog";
import { Header } from "./Header";
import { MessageList } from "./MessageList";
import { QueueAnnouncer } from "./QueueNote";
import { SettingsDialog } from "./SettingsDialog";
import { Sidebar } from "./Sidebar";
import { SignIn } from "./SignIn";
import { SignOutDialog } from "./SignOutDialog";
import { Welcome } from "./Welcome";

const UNDO_MS = 7_000;

export function App() {
  useEffect(() => {
    addEventListener("keydown", handleKey);
    return () => removeEventListener("keydown", handleKey);
  }, []);
  const isOpen = isSidebarOpen();
  const isEmpty = path.value.length === 0;
  return (
    <div class={`frame ${isOpen ? "with-sidebar" : ""} ${isEmpty ? "is-empty" : ""}`}>
      {isOpen && <Sidebar />}
      {isOpen && isNarrow.value && <div class="curtain" onClick={() => (isDrawerOpen.value = false)} />}
      <div class="page">
        <Header />
        <Middle isEmpty={isEmpty} />
        <Notices />
        <Dock isEmpty={isEmpty} />
      </div>
      {isSettingsOpen.value && <SettingsDialog />}
      {isContributeOpen.value && <ContributeDialog />}
      {isSignOutOpen.value && <SignOutDialog />}
      <Announcer />
      <QueueAnnouncer />
    </div>
  );
}

function Middle({ isEmpty }: { isEmpty: boolean }) {
  if (!isEmpty) return <MessageList />;
  return needsSignIn.value ? <SignIn isWhole /> : <Welcome />;
}

/** Signed out of a closed pool, stored chats can still be read. */
function Dock({ isEmpty }: { isEmpty: boolean }) {
  if (!needsSignIn.value) return <Composer isEmpty={isEmpty} />;
  return isEmpty ? null : <SignIn isWhole={false} />;
}

function Notices() {
  const conversation = removed.value;
  useEffect(() => {
    if (conversation === null) return;
    const timer = setTimeout(() => (removed.value = null), UNDO_MS);
    return () => clearTimeout(timer);
  }, [conversation]);
  return (
    <div class="notices" role="status">
      {conversation !== null && (
        <p class="notice">
          <span>Deleted “<bdi>{conversation.title}</bdi>”.</span>
          <button type="button" class="text-button" onClick={() => void undoRemove()}>Undo</button>
        </p>
      )}
      {greeting.value !== null && (
        <p class="notice" data-testid="greeting">
          <span dir="auto">{greeting.value}</span>
          <button type="button" class="text-button" onClick={() => (greeting.value = null)}>Got it</button>
        </p>
      )}
      {storageWarning.value !== null && (
        <p class="notice">
          <span>{storageWarning.value}</span>
          <button type="button" class="text-button" onClick={() => (storageWarning.value = null)}>Got it</button>
        </p>
      )}
    </div>
  );
}

/** Tells screen readers when an answer begins and ends; the answer itself is read once it is complete. */
function Announcer() {
  const isLive = currentLive.value !== null;
  const wasLive = useRef(false);
  const [text, setText] = useState("");
  useEffect(() => {
    if (isLive) setText("The pool is answering.");
    else if (wasLive.current) setText("The answer is complete.");
    wasLive.current = isLive;
  }, [isLive]);
  return <p class="sr-only" role="status">{text}</p>;
}
