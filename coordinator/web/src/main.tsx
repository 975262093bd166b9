import { render } from "preact";

import { signInWith } from "./account";
import { open, startNew, useStore } from "./chat";
import { App } from "./components/App";
import { conversationInAddress, keepAddress } from "./address";
import { startPolling } from "./pool";
import { takeToken } from "./session";
import { openStore } from "./store";
import "./styles/base.css";
import "./styles/frame.css";
import "./styles/layers.css";
import "./styles/messages.css";
import "./styles/prose.css";
import "./styles/controls.css";
import "./styles/composer.css";
import "./styles/account.css";

async function openAddressed(): Promise<void> {
  // An invitation may also be pasted into the address bar of a page that is open already.
  const invite = takeToken("invite");
  if (invite !== null) return signInWith(invite);
  const id = conversationInAddress();
  if (id === null || !(await open(id))) startNew();
}

/** An invitation is used before the pool is asked for anything, so that no refusal flashes up. */
async function enter(): Promise<void> {
  const invite = takeToken("invite");
  if (invite !== null) await signInWith(invite);
  startPolling();
}

async function start(): Promise<void> {
  const entered = enter();
  await useStore(await openStore());
  await openAddressed();
  const root = document.getElementById("page");
  if (root !== null) render(<App />, root);
  keepAddress();
  addEventListener("hashchange", () => void openAddressed());
  await entered;
}

void start();
