import { useRef, useState } from "preact/hooks";

import { current, liveAnswers, load, open, remove, rename, summaries } from "../chat";
import { type Summary, toMarkdown } from "../conversation";
import { dayGroup } from "../format";
import { focusComposer, isDrawerOpen, isNarrow, toggleSidebar } from "../view";
import { AccountFoot } from "./AccountFoot";
import { NewChatButton } from "./Header";
import { DownloadIcon, Logo, MoreIcon, PencilIcon, SearchIcon, SidebarIcon, TrashIcon } from "./Icons";
import { Popover } from "./Popover";

export function Sidebar() {
  const [wanted, setWanted] = useState("");
  const needle = wanted.trim().toLowerCase();
  const found = summaries.value.filter((summary) => summary.title.toLowerCase().includes(needle));
  return (
    <nav class="sidebar" aria-label="Conversations">
      <div class="sidebar-head">
        <Logo />
        <span class="brand">DecentLLM</span>
        <span class="spring" />
        <button type="button" class="icon-button" onClick={toggleSidebar} aria-label="Hide conversations" title="Hide conversations (Ctrl+B)">
          <SidebarIcon />
        </button>
        {!isNarrow.value && <NewChatButton />}
      </div>
      <label class="search">
        <SearchIcon />
        <span class="sr-only">Search conversations</span>
        <input id="search" type="search" placeholder="Search" value={wanted} onInput={(event) => setWanted(event.currentTarget.value)} />
      </label>
      <div class="conversation-list">
        {found.length === 0 && <p class="quiet pad">{needle === "" ? "Your conversations will be kept here, in this browser only." : "No conversation has this in its title."}</p>}
        <Groups found={found} />
      </div>
      <AccountFoot />
    </nav>
  );
}

/** More than anybody scrolls through; the search finds the rest. */
const MAX_LISTED = 300;

function Groups({ found }: { found: Summary[] }) {
  const now = Date.now();
  const groups = Map.groupBy(found.slice(0, MAX_LISTED), (summary) => dayGroup(summary.updatedAt, now));
  return (
    <>
      {[...groups].map(([name, members]) => (
        <section key={name}>
          <h2>{name}</h2>
          <ul>{members.map((summary) => <Entry key={summary.id} summary={summary} />)}</ul>
        </section>
      ))}
    </>
  );
}

function Entry({ summary }: { summary: Summary }) {
  const [isRenaming, setIsRenaming] = useState(false);
  const isCurrent = current.value.id === summary.id;
  const show = (): void => {
    isDrawerOpen.value = false;
    void open(summary.id);
  };
  if (isRenaming) return <li><Renamer summary={summary} close={() => setIsRenaming(false)} /></li>;
  return (
    <li class={`entry ${isCurrent ? "is-current" : ""}`} data-testid="conversation">
      <button type="button" class="entry-title" onClick={show} aria-current={isCurrent ? "page" : undefined} title={summary.title}>
        {liveAnswers.value.has(summary.id) && <span class="dot dot-answering" title="Answering" />}
        <bdi>{summary.title}</bdi>
      </button>
      <Popover label={`Options for ${summary.title}`} trigger={<MoreIcon />} triggerClass="small-button entry-more" side="left">
        {(close) => (
          <div class="menu">
            <button type="button" onClick={() => { close(); setIsRenaming(true); }}><PencilIcon />Rename</button>
            <button type="button" onClick={() => { close(); void download(summary); }}><DownloadIcon />Download</button>
            <button type="button" class="is-danger" onClick={() => { close(); void remove(summary.id); focusComposer(); }}><TrashIcon />Delete</button>
          </div>
        )}
      </Popover>
    </li>
  );
}

function Renamer({ summary, close }: { summary: Summary; close: () => void }) {
  const isDone = useRef(false);
  const finish = (title: string | null): void => {
    if (isDone.current) return; // leaving the field after Enter or Escape would finish a second time
    isDone.current = true;
    if (title !== null) void rename(summary.id, title);
    close();
  };
  return (
    <input class="renamer" aria-label="New name" value={summary.title} maxLength={120}
      ref={(input) => { if (input !== null && document.activeElement !== input) input.select(); }}
      onBlur={(event) => finish(event.currentTarget.value)}
      onKeyDown={(event) => {
        if (event.isComposing) return;
        if (event.key === "Enter") finish(event.currentTarget.value);
        if (event.key === "Escape") finish(null);
      }} />
  );
}

async function download(summary: Summary): Promise<void> {
  const conversation = await load(summary.id);
  if (conversation === null) return;
  const address = URL.createObjectURL(new Blob([toMarkdown(conversation)], { type: "text/markdown" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = `${summary.title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "chat"}.md`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1_000);
}
