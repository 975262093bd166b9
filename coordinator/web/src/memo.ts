import { Component, type ComponentType, type FunctionComponent, h, type VNode } from "preact";

/** Draws again only when a property changed. (preact/compat has one, with much else that this page needs not.) */
export function memo<Props extends object>(view: FunctionComponent<Props>): ComponentType<Props> {
  return class Memo extends Component<Props> {
    override shouldComponentUpdate(next: Readonly<Props>): boolean {
      const before = this.props as Record<string, unknown>;
      const after = next as Record<string, unknown>;
      return Object.keys({ ...before, ...after }).some((key) => before[key] !== after[key]);
    }

    override render(): VNode {
      return h(view as FunctionComponent, this.props);
    }
  };
}
