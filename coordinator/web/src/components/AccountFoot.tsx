import { session } from "../account";
import { isContributeOpen, isDrawerOpen, isSignOutOpen } from "../view";
import { ContributeIcon, GearIcon, SignOutIcon } from "./Icons";

/** At the foot of the sidebar: what one can give, and who is signed in. */
export function AccountFoot() {
  const who = session.value;
  const open = (dialog: { value: boolean }) => () => {
    isDrawerOpen.value = false;
    dialog.value = true;
  };
  return (
    <div class="account">
      <button type="button" class="account-row" data-testid="contribute" aria-haspopup="dialog" onClick={open(isContributeOpen)}>
        <ContributeIcon /><span>Contribute a computer</span>
      </button>
      {who?.role === "operator" && <a class="account-row" href="operator" data-testid="operator-link"><GearIcon /><span>Run the pool</span></a>}
      {who !== null && who.role !== null && (
        <button type="button" class="account-row" data-testid="sign-out" aria-haspopup="dialog" onClick={open(isSignOutOpen)}>
          <SignOutIcon />
          <span class="account-who">Sign out<small>{who.role === "operator" ? "Operator" : <bdi>{who.label || "Invited"}</bdi>}</small></span>
        </button>
      )}
    </div>
  );
}
