import type { ComponentChildren } from "preact";

function Icon({ children }: { children: ComponentChildren }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" width="20" height="20" fill="none" stroke="currentColor" stroke-width="1.75"
      stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">
      {children}
    </svg>
  );
}

export const SidebarIcon = () => <Icon><rect x="3.5" y="4.5" width="17" height="15" rx="3" /><path d="M9.5 4.5v15" /></Icon>;
export const PencilIcon = () => <Icon><path d="M4 20l.9-3.9L16.4 4.6a2 2 0 0 1 2.8 0l.2.2a2 2 0 0 1 0 2.8L7.9 19.1z" /></Icon>;
export const NewChatIcon = () => (
  <Icon><path d="M12.5 4.5H7a3 3 0 0 0-3 3V17a3 3 0 0 0 3 3h9.500a3 3 0 0 0 3-3v-5.5" /><path d="M10 14l.5-2.300L18 4.200a1.27 1.27 0 0 1 1.8 1.800L12.3 13.500z" /></Icon>
);
export const SettingsIcon = () => <Icon><path d="M4 7.500h9M18.5 7.500H20M4 16.500h1.500M11 16.500h9" /><circle cx="15.75" cy="7.5" r="2.5" /><circle cx="8.25" cy="16.5" r="2.5" /></Icon>;
export const SendIcon = () => <Icon><path d="M12 19V5.500M6 11l6-6 6 6" /></Icon>;
export const StopIcon = () => <Icon><rect x="7" y="7" width="10" height="10" rx="2" fill="currentColor" /></Icon>;
export const CopyIcon = () => <Icon><rect x="8.5" y="8.5" width="11" height="11" rx="2.5" /><path d="M15.5 5.500a1.5 1.5 0 0 0-1.5-1.500H6.500A2.5 2.5 0 0 0 4 6.500V14a1.5 1.5 0 0 0 1.5 1.5" /></Icon>;
export const CheckIcon = () => <Icon><path d="M5 12.500l4.5 4.500L19 7.5" /></Icon>;
export const AgainIcon = () => <Icon><path d="M19.5 12a7.5 7.5 0 1 1-2.3-5.400L19.5 9" /><path d="M19.5 4.500V9H15" /></Icon>;
export const LeftIcon = () => <Icon><path d="M14.5 6l-6 6 6 6" /></Icon>;
export const RightIcon = () => <Icon><path d="M9.5 6l6 6-6 6" /></Icon>;
export const DownIcon = () => <Icon><path d="M6 9.500l6 6 6-6" /></Icon>;
export const ArrowDownIcon = () => <Icon><path d="M12 5v13.500M6 13l6 6 6-6" /></Icon>;
export const MoreIcon = () => <Icon><path d="M6 12h.01M12 12h.01M18 12h.01" stroke-width="2.6" /></Icon>;
export const CloseIcon = () => <Icon><path d="M6.5 6.500l11 11M17.5 6.500l-11 11" /></Icon>;
export const SearchIcon = () => <Icon><circle cx="11" cy="11" r="6.5" /><path d="M16 16l4 4" /></Icon>;
export const TrashIcon = () => <Icon><path d="M4.5 7h15M9.5 7V5.500A1.5 1.5 0 0 1 11 4h2a1.5 1.5 0 0 1 1.5 1.500V7M6.5 7l.8 11a2 2 0 0 0 2 1.800h5.400a2 2 0 0 0 2-1.800l.8-11" /></Icon>;
export const DownloadIcon = () => <Icon><path d="M12 4.500V15M7.5 11l4.5 4.5 4.5-4.500M5 19.500h14" /></Icon>;
export const WarningIcon = () => <Icon><circle cx="12" cy="12" r="8.5" /><path d="M12 8v4.500M12 15.900v.1" /></Icon>;
export const PeopleIcon = () => <Icon><circle cx="9" cy="8.5" r="3.5" /><path d="M3 19.500a6 6 0 0 1 12 0M15.5 5.300a3.5 3.5 0 0 1 0 6.400M17.5 14.500a6 6 0 0 1 3.5 5" /></Icon>;
export const InfoIcon = () => <Icon><circle cx="12" cy="12" r="8.5" /><path d="M12 11.500v4.500M12 8v.1" /></Icon>;
export const ContributeIcon = () => <Icon><rect x="3.5" y="7" width="17" height="10" rx="2.5" /><circle cx="9" cy="12" r="2.25" /><circle cx="15.5" cy="12" r="2.25" /><path d="M6.5 17v2.500M10 17v2.500" /></Icon>;
export const SignOutIcon = () => <Icon><path d="M14 4.500H7.500a2.500 2.500 0 0 0-2.500 2.500v10a2.500 2.500 0 0 0 2.500 2.500H14M10.500 12H20M16.500 8.500L20 12l-3.500 3.500" /></Icon>;
export const GearIcon = () => <Icon><path d="M4 6h16M4 12h16M4 18h16" /><circle cx="9" cy="6" r="1.8" fill="var(--side)" /><circle cx="15" cy="12" r="1.8" fill="var(--side)" /><circle cx="7" cy="18" r="1.8" fill="var(--side)" /></Icon>;

/** Layers, held apart and side by side. */
export function Logo() {
  return (
    <svg class="logo" viewBox="0 0 32 32" width="24" height="24" aria-hidden="true">
      <rect class="logo-1" x="3" y="5" width="15" height="6" rx="3" />
      <rect class="logo-2" x="9" y="13" width="20" height="6" rx="3" />
      <rect class="logo-3" x="5" y="21" width="17" height="6" rx="3" />
    </svg>
  );
}
