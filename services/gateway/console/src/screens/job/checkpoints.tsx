import type { ComponentChildren } from "preact";
import type { Checkpoint, JobFile, JobStatus } from "../../api/types";
import { bytes, count } from "../../format";
import { ask } from "../../parts/dialog";
import { attempt, tell } from "../../parts/notices";
import { deleteCheckpoint } from "../../state/job";
import { isLora } from "../../state/pictures";
import { may } from "../../state/session";
import { texts } from "../../texts";

const words = texts.job;
/** How the name of a base model ends into whose weights a LoRA was put. */
const MERGED = "-merged.safetensors";

interface CheckpointsProps {
  job: JobStatus;
  checkpoints: readonly Checkpoint[];
  files: readonly JobFile[];
  finalUrl: string | null;
  /** Reads the job again. */
  read: () => Promise<void>;
}

export function Checkpoints({ job, checkpoints, files, finalUrl, read }: CheckpointsProps) {
  if (!checkpoints.length && !finalUrl) return null;
  const withLora = isLora(job.input);
  const shown = [finalUrl, ...checkpoints.map((each) => each.url)];
  const others = files.filter((file) => file.kind === "checkpoint" && !shown.includes(file.url));
  const fileOf = (url: string) => files.find((file) => file.url === url);
  const remove = async (step: number) => {
    if (!(await ask(words.confirmDeleteCheckpoint(count(step)), words.delete))) return;
    if (await attempt(() => deleteCheckpoint(job.id, step).then(read))) tell(words.checkpointDeleted(count(step)));
  };
  return (
    <section class="card">
      <h2>{words.checkpoints}</h2>
      {withLora && <p class="hint">{words.loraHint}</p>}
      <ul class="files">
        {finalUrl && <Download name={withLora ? words.finalLora : words.final} url={finalUrl} file={fileOf(finalUrl)} />}
        {others.map((file) => <Download key={file.url} name={file.name.endsWith(MERGED) ? words.merged : file.name} url={file.url} file={file} />)}
        {checkpoints.map((each) => (
          <Download key={each.url} name={words.stepRow(count(each.step))} url={each.url} file={fileOf(each.url)}>
            {may("admin") && (
              <button class="danger" aria-label={words.deleteCheckpoint(count(each.step))} onClick={() => void remove(each.step)}>
                {words.delete}
              </button>
            )}
          </Download>
        ))}
      </ul>
    </section>
  );
}

/** What is neither a picture nor a model: the report, metrics and the like. */
export function Files({ files }: { files: readonly JobFile[] }) {
  const others = files.filter((file) => !["image", "sample", "checkpoint"].includes(file.kind)).reverse();
  if (!others.length) return null;
  return (
    <section class="card">
      <h2>{words.files}</h2>
      <ul class="files">
        {others.map((file) => <Download key={file.url} name={file.name} url={file.url} file={file} />)}
      </ul>
    </section>
  );
}

interface DownloadProps {
  name: string;
  url: string;
  file: JobFile | undefined;
  children?: ComponentChildren;
}

function Download({ name, url, file, children }: DownloadProps) {
  return (
    <li>
      <span class="name">{name}</span>
      {file && <span class="hint">{bytes(file.bytes)}</span>}
      {file && <code class="hint" title={file.sha256}>{`sha256 ${file.sha256.slice(0, 12)}…`}</code>}
      {children}
      <a class="button" href={url} download={file?.name ?? ""} aria-label={`${words.download}: ${file?.name ?? name}`}>{words.download}</a>
    </li>
  );
}
