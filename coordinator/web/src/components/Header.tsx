import { newChat } from "../keyboard";
import { isNarrow, isSettingsOpen, isSidebarOpen, toggleSidebar } from "../view";
import { NewChatIcon, SettingsIcon, SidebarIcon } from "./Icons";
import { ModelMenu } from "./ModelMenu";
import { PoolPanel } from "./PoolPanel";

export function Header() {
  const isSidebarBeside = isSidebarOpen() && !isNarrow.value;
  return (
    <header class="header">
      {!isSidebarBeside && (
        <button type="button" class="icon-button" onClick={toggleSidebar} aria-label="Show conversations" title="Show conversations">
          <SidebarIcon />
        </button>
      )}
      {!isSidebarBeside && <NewChatButton />}
      <ModelMenu />
      <span class="spring" />
      <PoolPanel />
      <button type="button" class="icon-button" data-testid="settings" onClick={() => (isSettingsOpen.value = true)}
        aria-label="Settings" aria-haspopup="dialog" title="Settings">
        <SettingsIcon />
      </button>
    </header>
  );
}

/** In the header, or at the top of the sidebar when that stands beside the page: there is always exactly one. */
export function NewChatButton() {
  return (
    <button type="button" class="icon-button" data-testid="new-chat" onClick={newChat} aria-label="New chat"
      aria-keyshortcuts="Control+Shift+O" title="New chat (Ctrl+Shift+O)">
      <NewChatIcon />
    </button>
  );
}
