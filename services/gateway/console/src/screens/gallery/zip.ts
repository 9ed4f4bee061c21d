/** Several images as one file, put together in the browser. */
import { downloadZip } from "client-zip";
import { type Picture, imagesOf, readStatus } from "../../state/pictures";

export interface Progress {
  done: number;
  total: number;
}

export interface Zip {
  file: Blob;
  /** Images that could not be read, and so are not in the file. */
  missing: number;
}

/** The browser still reads a file after the click that saves it. */
const KEPT_MS = 60_000;

/** A folder for each job, in it the image's place in the results and its seed. */
export function nameIn({ job, index, image }: { job: { id: string }; index: number; image: { seed: number } }): string {
  return `${job.id}/${String(index).padStart(4, "0")}-seed-${image.seed}.png`;
}

/** Read all images, one after the other. */
export async function zipOf(pictures: readonly Picture[], signal: AbortSignal, tell: (progress: Progress) => void): Promise<Zip> {
  let missing = 0;
  const linkOf = freshLinks();
  const read = async (picture: Picture) => {
    try {
      // A copy that an <img> has left in the cache lacks the headers that let this page read it.
      const answer = await fetch(await linkOf(picture), { signal, cache: "no-store" });
      return answer.ok ? await answer.blob() : null;
    } catch (error) {
      signal.throwIfAborted();
      console.warn(nameIn(picture), error);
      return null;
    }
  };
  async function* entries() {
    for (const [done, picture] of pictures.entries()) {
      tell({ done, total: pictures.length });
      const input = await read(picture);
      if (input) yield { name: nameIn(picture), input };
      else missing += 1;
    }
  }
  const file = await downloadZip(entries()).blob();
  return { file, missing };
}

/** Links end after a while: each job is read anew, once. */
function freshLinks() {
  const read = new Map<string, ReturnType<typeof readStatus>>();
  return async ({ job: { id }, index }: Picture): Promise<string> => {
    const job = read.get(id) ?? readStatus(id);
    read.set(id, job);
    return imagesOf(await job)[index]!.image!;
  };
}

/** Have the browser save a file. */
export function save(file: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  window.setTimeout(() => URL.revokeObjectURL(link.href), KEPT_MS);
}
