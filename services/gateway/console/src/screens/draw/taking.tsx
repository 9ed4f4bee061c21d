/** Settings out of a picture that is dropped or chosen. */
import { type Signal, useSignal } from "@preact/signals";
import { texts } from "../../texts";
import { type Taken, takenFrom } from "./infotext";
import { textsOf } from "./png";
import { FIELDS, type Settings } from "./settings";

const words = texts.draw.taking;
/** Nobody draws larger images; whatever else is dropped is not to fill the memory. */
const MOST_BYTES = 256 * 2 ** 20;

interface Found {
  file: string;
  /** Why nothing was taken. */
  problem?: string;
  taken?: Taken;
}

export interface Taking {
  found: Signal<Found | null>;
  take: (file: File | undefined) => Promise<void>;
}

export function useTaking(settings: Signal<Settings>): Taking {
  const found = useSignal<Found | null>(null);
  const take = async (file: File | undefined) => {
    if (!file) return;
    const inside = await read(file);
    const taken = inside && takenFrom(inside);
    if (!taken) {
      found.value = { file: file.name, problem: inside ? words.nothing : words.noPng };
      return;
    }
    settings.value = { ...settings.value, ...taken.settings };
    found.value = { file: file.name, taken };
  };
  return { found, take };
}

/** Its texts; null: it is no PNG, or none that can be read. */
async function read(file: File): Promise<ReturnType<typeof textsOf>> {
  try {
    return textsOf(new Uint8Array(await file.slice(0, MOST_BYTES).arrayBuffer()));
  } catch {
    return null;
  }
}

export function TakingPanel({ found, take }: Taking) {
  const choose = (event: Event & { currentTarget: HTMLInputElement }) => {
    void take(event.currentTarget.files?.[0]);
    event.currentTarget.value = ""; // the same file may be chosen again
  };
  return (
    <div class="taking">
      <label class="drop">
        <input type="file" accept="image/png" onChange={choose} />
        <span>{words.lead}</span>
      </label>
      <div role="status">{found.value && <Said {...found.value} />}</div>
    </div>
  );
}

function Said({ file, problem, taken }: Found) {
  if (!taken) return <p class="problem">{`${file}: ${problem}`}</p>;
  const names = FIELDS.filter((field) => taken.settings[field]).map((field) => texts.draw.fields[field]);
  return (
    <>
      <p>{names.length ? words.taken(file, names.join(", ")) : `${file}: ${words.nothing}`}</p>
      {taken.unknown.length > 0 && (
        <>
          <p class="hint">{words.unknown}</p>
          <ul class="hint">
            {taken.unknown.map(([name, value]) => <li key={name}>{`${name}: ${value}`}</li>)}
          </ul>
        </>
      )}
      {taken.hasOtherSyntax && <p class="hint">{words.otherSyntax}</p>}
    </>
  );
}
