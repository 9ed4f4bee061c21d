import type { Checkpoint, JobFile } from "../../api/types";
import { bytes, count } from "../../format";
import { texts } from "../../texts";

const words = texts.job;

interface CheckpointsProps {
  checkpoints: readonly Checkpoint[];
  files: readonly JobFile[];
  finalUrl: string | null;
}

export function Checkpoints({ checkpoints, files, finalUrl }: CheckpointsProps) {
  if (!checkpoints.length && !finalUrl) return null;
  const fileOf = (url: string) => files.find((file) => file.url === url);
  return (
    <section class="card">
      <h2>{words.checkpoints}</h2>
      <ul class="files">
        {finalUrl && <Download name={words.final} url={finalUrl} file={fileOf(finalUrl)} />}
        {checkpoints.map((each) => (
          <Download key={each.url} name={words.stepRow(count(each.step))} url={each.url} file={fileOf(each.url)} />
        ))}
      </ul>
    </section>
  );
}

/** What is neither a picture nor a model: the report, metrics and the like. */
export function Files({ files }: { files: readonly JobFile[] }) {
  const others = files.filter((file) => !["checkpoint", "image", "sample"].includes(file.kind)).reverse();
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

function Download({ name, url, file }: { name: string; url: string; file: JobFile | undefined }) {
  return (
    <li>
      <span class="name">{name}</span>
      {file && <span class="hint">{bytes(file.bytes)}</span>}
      {file && <code class="hint" title={file.sha256}>{`sha256 ${file.sha256.slice(0, 12)}…`}</code>}
      <a class="button" href={url} download={file?.name ?? ""} aria-label={`${words.download}: ${file?.name ?? name}`}>{words.download}</a>
    </li>
  );
}
