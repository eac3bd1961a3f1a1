package com.example.mobilevit

import android.content.Context
import android.graphics.Bitmap
import androidx.annotation.WorkerThread
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.components.containers.Category
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.core.RunningMode
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier

/** An exported file in MediaPipe Tasks, which reads labels and value ranges from the file itself. */
class MediaPipeClassifier(context: Context, maxResults: Int = 5) : AutoCloseable {
    private val input = ModelInput(context)
    private val classifier = ImageClassifier.createFromOptions(
        context,
        ImageClassifier.ImageClassifierOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetPath("mobilevit.tflite").build())
            .setRunningMode(RunningMode.IMAGE)
            .setMaxResults(maxResults)
            .build(),
    )

    /**
     * Classifies an upright photo. Call it off the main thread.
     *
     * @return The best classes, the best first: `categoryName()`, `index()`, and `score()`, a probability.
     */
    @WorkerThread
    @Synchronized
    fun classify(photo: Bitmap): List<Category> {
        // MediaPipe stretches what it gets to the input's size, whatever its shape; what has that size stays as it is.
        val image = BitmapImageBuilder(input.prepare(photo)).build()
        return classifier.classify(image).classificationResult().classifications()[0].categories()
    }

    /** Frees the native memory; not while a photo is being classified, hence the lock. */
    @Synchronized
    override fun close() = classifier.close()
}
