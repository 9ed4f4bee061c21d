/** Thumbnails of what was left out of a data set. */
import { Failure, api, isMissing, result } from "../api/client";

/** Later pictures have no previews. */
const PAGES_WITH_PREVIEWS = 20;

/** The thumbnails of these files of a check, by their names; those that it has none of are not there. */
export async function previewsOf(check: string, files: readonly string[]): Promise<ReadonlyMap<string, string>> {
  const found = new Map<string, string>();
  let pages = 1;
  for (let page = 1; page <= Math.min(pages, PAGES_WITH_PREVIEWS) && found.size < files.length; page++) {
    try {
      const read = await result(api.GET("/jobs/{job}/dataset", { params: { path: { job: check }, query: { page } } }));
      pages = read.pages;
      for (const { file, preview } of read.pictures) if (preview && files.includes(file)) found.set(file, preview);
    } catch (error) {
      const isGone = isMissing(error) || (error instanceof Failure && error.status === 409);
      if (isGone) break;
      throw error;
    }
  }
  return found;
}
