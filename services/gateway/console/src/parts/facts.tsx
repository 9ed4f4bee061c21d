import type { ComponentChildren } from "preact";

type Fact = readonly [name: string, value: ComponentChildren];

/** Names and values side by side; what is empty is left out. */
export function Facts({ facts, kind = "facts" }: { facts: readonly (Fact | false)[]; kind?: "facts" | "numbers" }) {
  return (
    <dl class={kind}>
      {facts.filter((fact) => fact !== false).map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}
