import { texts } from "../texts";
import { Thumbnail } from "./thumbnail";

const PICTURE = /\.(jpe?g|jfif|png|bmp|webp|hei[cf]|hif|avif)$/i;

interface LeftOutProps {
  files: readonly { file: string; reason: string }[];
  /** Thumbnails by file. */
  previews: ReadonlyMap<string, string>;
}

/** Files that are not trained on, and why; a picture without a thumbnail could not be read. */
export function LeftOut({ files, previews }: LeftOutProps) {
  return (
    <ul class="left-out">
      {files.map(({ file, reason }) => (
        <li key={file}>
          <Preview file={file} link={previews.get(file)} />
          <span>
            <code dir="auto">{file}</code> <span class="hint">{reason}</span>
          </span>
        </li>
      ))}
    </ul>
  );
}

function Preview({ file, link }: { file: string; link: string | undefined }) {
  if (link) return <Thumbnail class="thumb" link={link} width={56} height={56} />;
  return PICTURE.test(file) ? <span class="thumb none hint">{texts.picture.none}</span> : null;
}
