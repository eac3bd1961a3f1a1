package com.example.mobilevit

import android.content.Context
import android.graphics.Bitmap
import androidx.annotation.WorkerThread
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.MappedByteBuffer
import java.nio.channels.FileChannel
import org.tensorflow.lite.Interpreter

/** An exported file in the LiteRT interpreter. It runs one photo at a time; for two at once, make two of these. */
class LiteRtClassifier(context: Context, threads: Int = 2) : AutoCloseable {
    data class Prediction(val label: String, val index: Int, val probability: Float)

    private val input = ModelInput(context)
    private val labels = context.assets.open("labels.txt").bufferedReader().use { it.readLines() }

    init {
        check(input.dtype == "uint8") { "The file takes ${input.dtype}; export it with --input-type uint8." }
        check(labels.size == input.classes) { "${labels.size} labels for ${input.classes} classes: of another file?" }
    }

    private val interpreter =
        Interpreter(mapped(context, "mobilevit.tflite"), Interpreter.Options().apply { setNumThreads(threads) })
    private val pixels = IntArray(input.width * input.height)

    // `image`: (1, H, W, 3), one byte for each of R, G, B, 0 to 255.
    private val image = ByteBuffer.allocateDirect(3 * pixels.size).order(ByteOrder.nativeOrder())

    /**
     * Classifies an upright photo. Call it off the main thread.
     *
     * @return The best classes, the best first.
     */
    @WorkerThread
    @Synchronized
    fun classify(photo: Bitmap, maxResults: Int = 5): List<Prediction> {
        input.prepare(photo).getPixels(pixels, 0, input.width, 0, 0, input.width, input.height)
        image.rewind()
        for (pixel in pixels) { // 0xAARRGGBB
            image.put((pixel shr 16).toByte()).put((pixel shr 8).toByte()).put(pixel.toByte())
        }
        image.rewind()
        val probabilities = arrayOf(FloatArray(labels.size)) // `probabilities`: (1, N)
        interpreter.run(image, probabilities)
        return labels.indices
            .sortedByDescending { probabilities[0][it] }
            .take(maxResults)
            .map { Prediction(labels[it], it, probabilities[0][it]) }
    }

    /** Frees the native memory; not while a photo is being classified, hence the lock. */
    @Synchronized
    override fun close() = interpreter.close()

    private companion object {
        /** The asset without a copy in memory, which is why the package must not compress it. */
        fun mapped(context: Context, name: String): MappedByteBuffer =
            context.assets.openFd(name).use { asset ->
                FileInputStream(asset.fileDescriptor).channel
                    .map(FileChannel.MapMode.READ_ONLY, asset.startOffset, asset.declaredLength)
            }
    }
}
