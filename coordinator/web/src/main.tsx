import { render } from "preact";

import { open, startNew, useStore } from "./chat";
import { App } from "./components/App";
import { conversationInAddress, keepAddress } from "./address";
import { startPolling } from "./pool";
import { openStore } from "./store";
import "./styles/base.css";
import "./styles/frame.css";
import "./styles/messages.css";
import "./styles/prose.css";
import "./styles/controls.css";

async function openAddressed(): Promise<void> {
  const id = conversationInAddress();
  if (id === null || !(await open(id))) startNew();
}

async function start(): Promise<void> {
  startPolling();
  await useStore(await openStore());
  await openAddressed();
  const root = document.getElementById("page");
  if (root !== null) render(<App />, root);
  keepAddress();
  addEventListener("hashchange", () => void openAddressed());
}

void start();
