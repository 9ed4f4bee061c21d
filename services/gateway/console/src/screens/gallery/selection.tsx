import { useEffect, useRef, useState } from "preact/hooks";
import { count } from "../../format";
import { tell } from "../../parts/notices";
import { Bar } from "../../parts/status";
import type { Picture } from "../../state/pictures";
import { texts } from "../../texts";
import { type Progress, save, zipOf } from "./zip";

const words = texts.gallery;

/** What is chosen, and what can be done with it. */
export function Selection({ pictures, clear }: { pictures: readonly Picture[]; clear: () => void }) {
  const [progress, setProgress] = useState<Progress | null>(null);
  const running = useRef<AbortController | null>(null);
  useEffect(() => () => running.current?.abort(), []);

  const download = async () => {
    const control = new AbortController();
    running.current = control;
    try {
      const { file, missing } = await zipOf(pictures, control.signal, setProgress);
      if (missing < pictures.length) save(file, words.file(new Date()));
      if (missing) tell(words.missing(missing), { isProblem: true });
    } catch (error) {
      if (!control.signal.aborted) tell((error as Error).message, { isProblem: true });
    } finally {
      setProgress(null);
    }
  };

  return (
    <div class="selection card" role="region" aria-label={words.selection}>
      <span role="status">
        {progress ? words.progress(count(progress.done + 1), count(progress.total)) : words.selected(pictures.length)}
      </span>
      {progress ? (
        <>
          <Bar label={words.download} share={progress.done / progress.total} />
          <button onClick={() => running.current?.abort()}>{texts.job.cancel}</button>
        </>
      ) : (
        <>
          <button onClick={clear}>{words.clear}</button>
          <button class="main" onClick={() => void download()}>{words.download}</button>
        </>
      )}
    </div>
  );
}
