import type { Disk } from "../../api/types";
import { bytes, count } from "../../format";
import { Facts } from "../../parts/facts";
import { Bar } from "../../parts/status";
import { texts } from "../../texts";
import { usedShare } from "./findings";

const words = texts.system.disk;

export function DiskRoom({ disk }: { disk: Disk }) {
  const { store, kept } = disk;
  return (
    <section class="card">
      <h2>{words.title}</h2>
      {store ? (
        <div class="rooms">
          <Room label={words.bytes} free={store.free_bytes} total={store.total_bytes} written={bytes} />
          {store.total_files !== null && store.free_files !== null && (
            <Room label={words.files} free={store.free_files} total={store.total_files} written={count} />
          )}
        </div>
      ) : (
        <p class="none">{words.elsewhere}</p>
      )}
      <h3>{words.kept}</h3>
      <p class="hint">{words.keptHint}</p>
      <Facts
        kind="numbers"
        facts={[
          [words.uploads, bytes(kept.uploads)],
          [words.datasets, bytes(kept.datasets)],
          [words.models, bytes(kept.models)],
          [words.database, bytes(disk.database_bytes)],
          [words.version, disk.version ?? texts.system.unknown],
        ]}
      />
    </section>
  );
}

interface RoomProps {
  label: string;
  free: number;
  total: number;
  written: (value: number) => string;
}

function Room({ label, free, total, written }: RoomProps) {
  return (
    <div class="room">
      <p>
        <span class="name">{label}</span> <span class="hint">{words.free(written(free), written(total))}</span>
      </p>
      <Bar label={label} share={usedShare(free, total)} />
    </div>
  );
}
