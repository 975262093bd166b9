import { render } from "preact";

import { takeToken } from "../session";
import "../styles/base.css";
import "../styles/layers.css";
import "../styles/controls.css";
import "./operator.css";
import { OperatorApp } from "./parts/OperatorApp";
import { startPlanPolling } from "./planState";
import { enter, startPolling } from "./state";

const root = document.getElementById("page");
if (root !== null) render(<OperatorApp />, root);
startPolling();
startPlanPolling();
void enter(takeToken("token"));
// A link may also be pasted into the address bar of a page that is open already.
addEventListener("hashchange", () => {
  const token = takeToken("token");
  if (token !== null) void enter(token);
});
